"""The specifications of the plots of areas against what they cost."""

import math
from typing import Literal

from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.labels import CHOSEN, SIDES, Box, free_sides, shorten, text_width
from paretune.report.specs.frontier import (
    ON_PAGE,
    SCHEMA,
    Spec,
    Theme,
    behind,
    isolated,
    look,
    padded,
    shown,
    tidy,
)

_WIDTHS = (380, 660)  # of the plot in pixels, for which names are placed; they hide in others
_TITLES = {
    "trainable_parameters": "Trainable parameters",
    "train_seconds": "Training time of one seed, seconds",
}


def cost_spec(
    condition: Condition,
    looks: dict[str, Style],
    theme: Theme,
    cost: Literal["trainable_parameters", "train_seconds"] = "trainable_parameters",
) -> Spec:
    """Area against trainable parameters, or against training time."""
    rows: list[Spec] = [
        {
            "strategy": estimate.strategy,
            "cost": getattr(estimate, cost),
            "area": estimate.area,
            "low": estimate.low,
            "high": estimate.high,
        }
        for estimate in condition.areas
    ]
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    costs = [row["cost"] for row in rows]
    domain = [min(costs) / 3, max(costs) * 3]
    if domain[1] == 0:
        domain[1] = 1
    scale: Spec = {"type": "log" if domain[0] > 0 else "symlog", "domain": domain, "nice": False}
    areas = padded(row[end] for row in rows for end in ("low", "high"))
    height = max(200, 46 * len(rows))
    _name_rows(rows, domain, areas, height)
    y = {
        "field": "area",
        "type": "quantitative",
        "title": "Area under the frontier",
        "scale": {"domain": areas, "zero": False, "nice": False},
        "axis": {"format": ".2~f"},
    }
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": _TITLES[cost],
        "scale": scale,
        "axis": {"format": "~s" if cost == "trainable_parameters" else ",~g", "values": _powers(*domain)},
    }
    number = ",.4~r" if cost == "train_seconds" else ","
    tooltip = [
        {"field": "strategy", "title": "Strategy"},
        {"field": "cost", "title": _TITLES[cost], "format": number, "type": "quantitative"},
        {"field": "area", "title": "Area", "format": ".4f", "type": "quantitative"},
    ]
    mark: Spec = {"aria": False}
    return {
        "$schema": SCHEMA,
        "description": f"Area against {_TITLES[cost].lower()}: "
        + "; ".join(f"{row['strategy']} {row['area']:.3f} with {row['cost']:,.4g}" for row in rows),
        "datasets": {"costs": tidy(rows)},
        "data": {"name": "costs"},
        "usermeta": behind(
            "costs",
            ("strategy", "Strategy", ""),
            ("cost", _TITLES[cost], number),
            ("area", "Area", ".4f"),
            ("low", "Low", ".4f"),
            ("high", "High", ".4f"),
        ),
        "params": isolated(theme),
        "height": height,
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {**mark, "type": "rule", "strokeWidth": 3, "strokeCap": "round"},
                "encoding": {
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "opacity": shown(theme, 0.55),
                },
            },
            {
                "name": "costs",
                "mark": {
                    **mark,
                    "type": "point",
                    "filled": True,
                    "size": 130,
                    "stroke": theme.paper,
                    "strokeWidth": 1.5,
                },
                "encoding": {
                    "y": y,
                    "shape": shape,
                    "opacity": shown(theme, 1.0, hidden=0.15),
                    "tooltip": tooltip,
                },
            },
            *(_names(side, y, theme, halo) for side in SIDES for halo in (True, False)),
        ],
    }


def _names(side: str, y: Spec, theme: Theme, halo: bool) -> Spec:
    """The names on one side of their marks, or what keeps them readable across lines."""
    align, dx, dy = SIDES[side]
    text = {
        "type": "text",
        "align": align,
        "baseline": "middle",
        "dx": dx,
        "dy": dy,
        "fontSize": 12,
        "limit": {"expr": "datum.room"},
        "aria": False,
    }
    if halo:
        text |= {"stroke": theme.paper, "strokeWidth": 4, "strokeJoin": "round"}
    tests = [f"width >= {_WIDTHS[0]}", f"width <= {_WIDTHS[1]}"]
    if theme is ON_PAGE:
        tests.append("(isolated === '' || isolated === datum.strategy)")
    return {
        "transform": [{"filter": f"datum.side === '{side}'"}],
        "mark": text,
        "encoding": {
            "y": y,
            "text": {"field": "text", "type": "nominal"},
            "color": {"value": theme.paper if halo else theme.ink},
            "opacity": {"condition": {"test": " && ".join(tests), "value": 1}, "value": 0},
        },
    }


def _name_rows(rows: list[Spec], costs: list[float], areas: list[float], height: int) -> None:
    """Give each row the ``side`` of its mark where its name hides no other name, mark or interval, if there is one."""
    lowest = costs[0] or costs[1] / 1000
    across = [math.log(max(row["cost"], lowest) / lowest) / math.log(costs[1] / lowest) for row in rows]

    def down(area: float) -> float:
        return (areas[1] - area) / (areas[1] - areas[0]) * height

    taken: list[Box] = []
    for x, row in zip(across, rows, strict=True):
        y = down(row["area"])
        taken.append((x, -CHOSEN, y - CHOSEN, CHOSEN, y + CHOSEN))
        taken.append((x, -2, down(row["high"]), 2, down(row["low"])))
    for x, row in zip(across, rows, strict=True):
        row["text"], row["side"] = shorten(row["strategy"]), ""
        row["room"] = text_width(row["text"], 12)
        if free := free_sides(x, down(row["area"]), row["room"], taken, _WIDTHS, height):
            row["side"], box = free[-1]  # rather level with the mark, where no other line is
            taken.append(box)


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten in the range; with halves and fifths where there are few."""
    exponents = range(math.floor(math.log10(low or high / 1000)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    if len(powers) > 1:
        return powers
    return [
        value for exponent in exponents for k in (1, 2, 5) if low <= (value := k * 10.0**exponent) <= high
    ]
