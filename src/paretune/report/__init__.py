"""Frontiers as one offline HTML page, as SVG, PNG and PDF, and as matplotlib axes."""

from paretune.report.analysis_page import write_analysis
from paretune.report.figures import frontier_pdf, frontier_png, frontier_svg, plot_frontiers
from paretune.report.inheritance_page import write_inheritance
from paretune.report.page import report_html, write_report
from paretune.report.papers import write_tables

__all__ = [
    "frontier_pdf",
    "frontier_png",
    "frontier_svg",
    "plot_frontiers",
    "report_html",
    "write_analysis",
    "write_inheritance",
    "write_report",
    "write_tables",
]
