"""The specification of the plot of areas, or of other numbers of strategies, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paretune.report.drawing import Style
from paretune.report.specs.frontier import SCHEMA, Spec, Theme, behind, isolated, look, padded, shown, tidy


class Area(Protocol):
    """One row of the plot, such as :class:`paretune.frontiers.verdict.AreaEstimate`."""

    @property
    def strategy(self) -> str:
        """The name beside it."""

    @property
    def area(self) -> float:
        """In [0, 1]."""

    @property
    def low(self) -> float | None:
        """Where its interval starts; None where there is no interval."""

    @property
    def high(self) -> float | None:
        """Where its interval ends; None where there is no interval."""

    @property
    def seeds(self) -> Sequence[object]:
        """Training seeds, or other repetitions."""

    @property
    def per_seed(self) -> Sequence[float]:
        """One area for each seed."""


@dataclass(frozen=True)
class Quantity:
    """What the numbers of a plot are.

    Args:
        axis: title of the axis.
        name: in tables and tooltips.
        several: begins the description.
        change: whether it may be below zero, where a line stands; else it is in [0, 1].
    """

    axis: str
    name: str
    several: str
    change: bool = False

    @property
    def sign(self) -> str:
        """Before the format of a number."""
        return "+" if self.change else ""


AREA = Quantity("Area under the frontier", "Area", "Areas under the frontiers")


def forest_spec(
    areas: Sequence[Area], looks: dict[str, Style], theme: Theme, quantity: Quantity = AREA
) -> Spec:
    """Areas with their intervals, in the order given; small ticks are single seeds."""
    rows: list[Spec] = []
    seeds: list[Spec] = []
    for rank, estimate in enumerate(areas):
        row = {
            "rank": rank,
            "strategy": estimate.strategy,
            "text": f"{estimate.strategy}  {estimate.area:{quantity.sign}.3f}",
        }
        rows.append({**row, "area": estimate.area, "low": estimate.low, "high": estimate.high})
        if len(estimate.seeds) > 1:
            pairs = zip(estimate.seeds, estimate.per_seed, strict=True)
            seeds += [
                {"rank": rank, "strategy": estimate.strategy, "seed": seed, "area": area}
                for seed, area in pairs
            ]
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    values = [row[end] for row in rows for end in ("low", "area", "high") if row[end] is not None]
    x = {
        "field": "area",
        "type": "quantitative",
        "title": quantity.axis,
        "scale": {
            "domain": padded(
                [*values, *(seed["area"] for seed in seeds), *([0.0] if quantity.change else [])],
                -1.0 if quantity.change else 0.0,
            ),
            "zero": False,
            "nice": False,
        },
        "axis": {"format": f"{quantity.sign}.2~f"},
    }
    number = f"{quantity.sign}.4f"
    tooltip = [
        {"field": "strategy", "title": "Strategy"},
        {"field": "area", "title": quantity.name, "format": number, "type": "quantitative"},
    ]
    ends = [
        {"field": end, "title": end.capitalize(), "format": number, "type": "quantitative"}
        for end in ("low", "high")
    ]
    has_interval = [{"filter": "isValid(datum.low) && isValid(datum.high)"}]
    mark: Spec = {"aria": False}
    interval: Spec = {
        "data": {"name": "areas"},
        "transform": has_interval,
        "mark": {**mark, "type": "rule", "strokeWidth": 3, "yOffset": 6, "strokeCap": "round"},
        "encoding": {
            "x": {**x, "field": "low"},
            "x2": {"field": "high"},
            "color": colour,
            "opacity": shown(theme, 0.55),
        },
    }
    zero: Spec = {
        "data": {"values": [{"zero": 0}]},
        "mark": {**mark, "type": "rule", "strokeDash": [4, 3], "color": theme.ink, "opacity": 0.5},
        "encoding": {"y": None, "x": {**x, "field": "zero"}},
    }
    single: Spec = {
        "data": {"name": "seeds"},
        "mark": {**mark, "type": "tick", "thickness": 1.5, "size": 11, "yOffset": 6},
        "encoding": {
            "color": colour,
            "opacity": shown(theme, 0.8),
            "tooltip": [tooltip[0], {"field": "seed", "title": "Seed"}, tooltip[1]],
        },
    }
    point: Spec = {
        "name": "areas",
        "data": {"name": "areas"},
        "mark": {
            **mark,
            "type": "point",
            "filled": True,
            "size": 130,
            "yOffset": 6,
            "stroke": theme.paper,
            "strokeWidth": 1.5,
        },
        "encoding": {
            "color": colour,
            "shape": shape,
            "opacity": shown(theme, 1.0, hidden=0.15),
            "tooltip": tooltip + (ends if any(row["low"] is not None for row in rows) else []),
        },
    }
    name: Spec = {
        "data": {"name": "areas"},
        "mark": {
            **mark,
            "type": "text",
            "align": "left",
            "fontSize": 13,
            "yOffset": -13,
            "color": theme.ink,
            "limit": {"expr": "width - 4"},
        },
        "encoding": {
            "x": {"value": 2},
            "text": {"field": "text", "type": "nominal"},
            "opacity": shown(theme, 1.0, hidden=0.35),
        },
    }
    return {
        "$schema": SCHEMA,
        "description": f"{quantity.several}: " + "; ".join(map(_sentence, rows)),
        "datasets": {"areas": tidy(rows), "seeds": tidy(seeds)},
        "usermeta": behind(
            "areas",
            ("strategy", "Strategy", ""),
            ("area", quantity.name, number),
            ("low", "Low", number),
            ("high", "High", number),
        ),
        "params": isolated(theme),
        "height": 46 * len(rows),
        "encoding": {"y": {"field": "rank", "type": "ordinal", "axis": None}, "x": x},
        "layer": [*([zero] if quantity.change else []), interval, *([single] if seeds else []), point, name],
    }


def _sentence(row: Spec) -> str:
    area = f"{row['strategy']} {row['area']:.3f}"
    return area if row["low"] is None else f"{area} from {row['low']:.3f} to {row['high']:.3f}"
