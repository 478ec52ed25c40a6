"""Frontiers as one offline HTML page, as SVG and PNG, and as matplotlib axes."""

from paretune.report.figures import frontier_png, frontier_svg, plot_frontiers
from paretune.report.page import write_report

__all__ = ["frontier_png", "frontier_svg", "plot_frontiers", "write_report"]
