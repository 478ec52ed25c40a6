"""The specifications of two of three accuracies against each other: fronts in a plane, and the course of training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from paretune.frontiers.tracking import Slope
from paretune.report.drawing import Style, range_around, staircase
from paretune.report.specs.frontier import SCHEMA, Spec, Theme, behind, isolated, look, shown, tidy

TITLES = {"clean": "Clean accuracy", "robust": "Robust accuracy", "shifted": "Shifted accuracy"}


def plane_spec(points: pd.DataFrame, looks: dict[str, Style], theme: Theme, x: str, y: str) -> Spec:
    """The chosen checkpoints in the plane of two accuracies, with their front in it, one staircase a seed.

    Args:
        points: columns ``strategy``, ``seed``, ``step``, ``clean``, ``robust``, ``shifted``, ``chosen``.
        looks: of the strategies.
        theme: of the surroundings.
        x: which accuracy is across.
        y: which is up.
    """
    chosen = points[points["chosen"]]
    stairs = [
        {"strategy": strategy, "line": f"{strategy}/{seed}", "x": across, "y": up}
        for (strategy, seed), rows in chosen.groupby(["strategy", "seed"], sort=True)
        for across, up in staircase(rows[[x, y]].to_numpy(dtype=float)).tolist()
    ]
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    lines = max(1, chosen.groupby("strategy")["seed"].nunique().max())
    hull = f"{len(chosen)} chosen checkpoints of {', '.join(looks)}"
    return {
        "$schema": SCHEMA,
        "description": f"{TITLES[y]} against {TITLES[x].lower()}: {hull}",
        "datasets": {"stairs": tidy(stairs), "points": _rows(chosen)},
        "params": isolated(theme),
        "height": 200,
        "resolve": {"scale": {"color": "independent"}},
        "encoding": {"x": _axis(chosen, x), "y": _axis(chosen, y)},
        "layer": [
            {
                "data": {"name": "stairs"},
                "mark": {
                    "type": "line",
                    "clip": True,
                    "aria": False,
                    "interpolate": "step-before",
                    "strokeWidth": 1.6,
                    "strokeJoin": "round",
                },
                "encoding": {
                    "x": {"field": "x", "type": "quantitative"},
                    "y": {"field": "y", "type": "quantitative"},
                    "detail": {"field": "line", "type": "nominal"},
                    "order": {"value": None},
                    "color": colour,
                    "strokeDash": look(looks, "dash", theme),
                    "opacity": shown(theme, max(0.2, 0.9 / float(lines**0.5)), 0.9),
                },
            },
            {
                "data": {"name": "points"},
                "mark": {"type": "point", "filled": True, "size": 34, "aria": False},
                "encoding": {
                    "color": colour,
                    "shape": shape,
                    "opacity": shown(theme, 0.9, hidden=0.05),
                    "tooltip": _tooltip(),
                },
            },
        ],
    }


def course_spec(
    points: pd.DataFrame, slopes: Sequence[Slope], looks: dict[str, Style], theme: Theme, x: str
) -> Spec:
    """Shifted accuracy against another one along training, and the slope of each strategy through its mean point.

    Args:
        points: as in :func:`plane_spec`.
        slopes: on this accuracy; strategies without a slope have no line.
        looks: of the strategies.
        theme: of the surroundings.
        x: the other accuracy.
    """
    lines = []
    for slope in slopes:
        rows = points[points["strategy"] == slope.strategy]
        if slope.slope is None or not len(rows):
            continue
        for end in (rows[x].min(), rows[x].max()):
            up = rows["shifted"].mean() + slope.slope * (end - rows[x].mean())
            lines.append({"strategy": slope.strategy, "x": float(end), "y": float(np.clip(up, 0, 1))})
    said = ", ".join(
        f"{slope.strategy} {slope.slope:.2f}" if slope.slope is not None else f"{slope.strategy} not known"
        for slope in slopes
    )
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    formats = (("clean", ".1%"), ("robust", ".1%"), ("shifted", ".1%"))
    return {
        "$schema": SCHEMA,
        "description": f"Shifted accuracy against {TITLES[x].lower()} along training; slopes: {said}",
        "datasets": {"lines": tidy(lines), "points": _rows(points)},
        "usermeta": behind(
            "points",
            ("strategy", "Strategy", ""),
            ("seed", "Seed", ""),
            ("step", "Step", ","),
            *((name, name.capitalize(), form) for name, form in formats),
            ("chosen", "Chosen", ""),
        ),
        "params": isolated(theme),
        "height": 250,
        "resolve": {"scale": {"color": "independent"}},
        "encoding": {"x": _axis(points, x), "y": _axis(points, "shifted")},
        "layer": [
            {
                "data": {"name": "points"},
                "mark": {"type": "point", "filled": True, "size": 30, "aria": False},
                "encoding": {
                    "color": colour,
                    "shape": shape,
                    "opacity": shown(theme, 0.5, 0.9, 0.03),
                    "tooltip": _tooltip(),
                },
            },
            {
                "data": {"name": "lines"},
                "mark": {"type": "line", "clip": True, "aria": False, "strokeWidth": 2},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative"},
                    "y": {"field": "y", "type": "quantitative"},
                    "color": colour,
                    "strokeDash": look(looks, "dash", theme),
                    "opacity": shown(theme, 0.9),
                },
            },
        ],
    }


def _rows(points: pd.DataFrame) -> list[Spec]:
    columns = ["strategy", "seed", "step", "clean", "robust", "shifted", "chosen"]
    return tidy(points[columns].to_dict("records"))


def _axis(points: pd.DataFrame, field: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "title": TITLES[field],
        "scale": {"domain": [*range_around(points[field])], "nice": False, "zero": False},
        "axis": {"format": "~%", "tickCount": 4},
    }


def _tooltip() -> list[Spec]:
    numbers = [{"field": name, "title": title, "format": ".1%"} for name, title in TITLES.items()]
    return [
        {"field": "strategy", "title": "Strategy", "type": "nominal"},
        {"field": "seed", "title": "Seed", "type": "nominal"},
        {"field": "step", "title": "Step", "type": "quantitative", "format": ","},
        *({**number, "type": "quantitative"} for number in numbers),
    ]
