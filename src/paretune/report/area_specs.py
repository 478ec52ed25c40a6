"""The specifications of the two plots of areas: with their intervals, and against what they cost."""

import math

from paretune.report.drawing import Box, Style, overlap, shorten
from paretune.report.specs import SCHEMA, Spec, Theme, look, tidy
from paretune.verdict import Condition

_COST_WIDTH = 430  # pixels, for which names are placed


def forest_spec(condition: Condition, looks: dict[str, Style], theme: Theme) -> Spec:
    """Areas with their intervals, best on top; small ticks are single seeds."""
    rows: list[Spec] = []
    seeds: list[Spec] = []
    for rank, estimate in enumerate(condition.areas):
        rows.append(
            {
                "rank": rank,
                "strategy": estimate.strategy,
                "text": f"{estimate.strategy}  {estimate.area:.3f}",
                "area": estimate.area,
                "low": estimate.low,
                "high": estimate.high,
            }
        )
        pairs = zip(estimate.seeds, estimate.per_seed, strict=True)
        seeds += [
            {"rank": rank, "strategy": estimate.strategy, "seed": seed, "area": area} for seed, area in pairs
        ]
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    values = [value for row in rows for value in (row["low"], row["high"])] + [seed["area"] for seed in seeds]
    x = {
        "field": "area",
        "type": "quantitative",
        "title": "Area under the frontier",
        "scale": {"domain": _padded(values), "zero": False, "nice": False},
        "axis": {"format": ".2~f"},
    }
    tooltip = [
        {"field": "strategy", "title": "Strategy"},
        {"field": "area", "title": "Area", "format": ".4f", "type": "quantitative"},
    ]
    interval = [
        {"field": end, "title": end.capitalize(), "format": ".4f", "type": "quantitative"}
        for end in ("low", "high")
    ]
    mark: Spec = {"aria": False}
    return {
        "$schema": SCHEMA,
        "description": "Areas under the frontiers with intervals: "
        + "; ".join(
            f"{row['strategy']} {row['area']:.3f} from {row['low']:.3f} to {row['high']:.3f}" for row in rows
        ),
        "datasets": {"areas": tidy(rows), "seeds": tidy(seeds)},
        "height": 46 * len(rows),
        "encoding": {"y": {"field": "rank", "type": "ordinal", "axis": None}, "x": x},
        "layer": [
            {
                "data": {"name": "areas"},
                "mark": {
                    **mark,
                    "type": "rule",
                    "strokeWidth": 3,
                    "opacity": 0.55,
                    "yOffset": 6,
                    "strokeCap": "round",
                },
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour},
            },
            {
                "data": {"name": "seeds"},
                "mark": {**mark, "type": "tick", "thickness": 1.5, "size": 11, "opacity": 0.8, "yOffset": 6},
                "encoding": {
                    "color": colour,
                    "tooltip": [tooltip[0], {"field": "seed", "title": "Seed"}, tooltip[1]],
                },
            },
            {
                "data": {"name": "areas"},
                "mark": {
                    **mark,
                    "type": "point",
                    "filled": True,
                    "size": 130,
                    "opacity": 1,
                    "yOffset": 6,
                    "stroke": theme.paper,
                    "strokeWidth": 1.5,
                },
                "encoding": {"color": colour, "shape": shape, "tooltip": tooltip + interval},
            },
            {
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
                "encoding": {"x": {"value": 2}, "text": {"field": "text", "type": "nominal"}},
            },
        ],
    }


def cost_spec(condition: Condition, looks: dict[str, Style], theme: Theme) -> Spec:
    """Area against trainable parameters."""
    rows: list[Spec] = [
        {
            "strategy": estimate.strategy,
            "parameters": estimate.trainable_parameters,
            "area": estimate.area,
            "low": estimate.low,
            "high": estimate.high,
        }
        for estimate in condition.areas
    ]
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    parameters = [row["parameters"] for row in rows]
    domain = [min(parameters) / 3, max(parameters) * 3]
    scale: Spec = {"type": "log" if domain[0] > 0 else "symlog", "domain": domain, "nice": False}
    areas = _padded([row[end] for row in rows for end in ("low", "high")])
    height = max(200, 46 * len(rows))
    _name_rows(rows, domain, areas, (_COST_WIDTH, height))
    y = {
        "field": "area",
        "type": "quantitative",
        "title": "Area under the frontier",
        "scale": {"domain": areas, "zero": False, "nice": False},
        "axis": {"format": ".2~f"},
    }
    x = {
        "field": "parameters",
        "type": "quantitative",
        "title": "Trainable parameters",
        "scale": scale,
        "axis": {"format": "~s", "values": _powers(*domain)},
    }
    tooltip = [
        {"field": "strategy", "title": "Strategy"},
        {"field": "parameters", "title": "Trainable parameters", "format": ",", "type": "quantitative"},
        {"field": "area", "title": "Area", "format": ".4f", "type": "quantitative"},
    ]
    mark: Spec = {"aria": False}
    return {
        "$schema": SCHEMA,
        "description": "Area against trainable parameters: "
        + "; ".join(f"{row['strategy']} {row['area']:.3f} with {row['parameters']:,}" for row in rows),
        "data": {"values": tidy(rows)},
        "height": height,
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {**mark, "type": "rule", "strokeWidth": 3, "opacity": 0.55, "strokeCap": "round"},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {
                    **mark,
                    "type": "point",
                    "filled": True,
                    "size": 130,
                    "opacity": 1,
                    "stroke": theme.paper,
                    "strokeWidth": 1.5,
                },
                "encoding": {"y": y, "shape": shape, "tooltip": tooltip},
            },
            *(_names(side, y, theme) for side in ("right", "left")),
        ],
    }


def _names(side: str, y: Spec, theme: Theme) -> Spec:
    """The names on one side of their marks; there is no room for them on a narrow screen."""
    align, dx = ("left", 11) if side == "right" else ("right", -11)
    text = {
        "type": "text",
        "align": align,
        "baseline": "middle",
        "dx": dx,
        "fontSize": 12,
        "aria": False,
    }
    return {
        "transform": [{"filter": f"datum.side === '{side}'"}],
        "mark": text,
        "encoding": {
            "y": y,
            "text": {"field": "text", "type": "nominal"},
            "color": {"value": theme.ink},
            "opacity": {"condition": {"test": f"width > {0.7 * _COST_WIDTH}", "value": 1}, "value": 0},
        },
    }


def _name_rows(rows: list[Spec], parameters: list[float], areas: list[float], size: tuple[int, int]) -> None:
    """Give each row the ``side`` of its mark where its name hides no other name or mark, if there is one."""
    span = math.log(parameters[1] / max(parameters[0], 1))
    marks = [
        (
            math.log(max(row["parameters"], 1) / max(parameters[0], 1)) / span * size[0],
            (areas[1] - row["area"]) / (areas[1] - areas[0]) * size[1],
        )
        for row in rows
    ]
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in marks]
    for row, (x, y) in zip(rows, marks, strict=True):
        row["text"] = shorten(row["strategy"])
        width = 7.0 * len(row["text"])
        for side, left in (("right", x + 9), ("left", x - 9 - width)):
            box = (left, y - 8, left + width, y + 8)
            if 0 <= left <= size[0] - width and not any(overlap(box, other) for other in taken):
                row["side"] = side
                taken.append(box)
                break


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten in the range; with halves and fifths where there are few."""
    exponents = range(math.floor(math.log10(max(low, 1))), math.ceil(math.log10(high)) + 1)
    powers = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    if len(powers) > 1:
        return powers
    return [
        value for exponent in exponents for k in (1, 2, 5) if low <= (value := k * 10.0**exponent) <= high
    ]


def _padded(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 0.01)
    return [max(0.0, low - pad), min(1.0, high + pad)]
