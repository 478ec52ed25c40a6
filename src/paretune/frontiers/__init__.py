"""Which strategy has the best frontier, and how sure that is. Needs no torch."""

from paretune.frontiers.comparing import compare, recommend
from paretune.frontiers.pareto import area, frontier
from paretune.frontiers.tables.analysis import analyze

__all__ = ["analyze", "area", "compare", "frontier", "recommend"]
