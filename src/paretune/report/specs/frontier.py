"""Vega-Lite specifications as plain dictionaries: https://vega.github.io/vega-lite/docs/

Here is what all of them share, and the frontier plot; the other plots have files of their own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from paretune.report.drawing import Drawing, Style
from paretune.report.labels import SIDES

Spec = dict[str, Any]

_CROWD = 10  # runs; of more, the course of training stays fainter until one strategy is isolated
ON_PAGE_WIDTHS = (600, 1000)  # pixels, of a plot on a page, for which names are placed
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True)
class Theme:
    """Colours and fonts of the surroundings; on a page they are the page's own."""

    ink: str
    paper: str
    font: str

    def config(self) -> Spec:
        """The configuration all plots share."""
        text: Spec = {
            "labelColor": self.ink,
            "titleColor": self.ink,
            "labelFontSize": 12,
            "titleFontSize": 13,
        }
        return {
            "background": None if self is ON_PAGE else self.paper,
            "font": self.font,
            "view": {"stroke": None},
            "axis": {
                **text,
                "labelOpacity": 0.8,
                "titleFontWeight": 500,
                "titlePadding": 12,
                "labelPadding": 6,
                "grid": True,
                "gridColor": self.ink,
                "gridOpacity": 0.1,
                "domain": False,
                "ticks": False,
                "tickCount": 6,
            },
            "title": {
                "color": self.ink,
                "fontSize": 15,
                "fontWeight": 600,
                "anchor": "start",
                "offset": 14,
                "subtitleColor": self.ink,
                "subtitleFontSize": 12,
                "subtitleLineHeight": 17,
                "subtitlePadding": 6,
            },
        }


ON_PAGE = Theme(
    "currentColor", "var(--surface)", "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
)
ON_WHITE = Theme("#1b1f24", "#ffffff", "Helvetica, Arial, 'Liberation Sans', sans-serif")


def frontier_spec(drawing: Drawing, looks: dict[str, Style], theme: Theme, *, description: str) -> Spec:
    """Clean against robust accuracy: the staircase of each seed, chosen checkpoints as large marks, where areas start.

    On a page, the parameter ``isolated`` holds the one strategy to show, with the course of its training, or nothing;
    ``whole`` shows all points. Names stand in plots as wide as ``drawing`` placed them for.
    """
    interactive = theme is ON_PAGE
    in_view = [{"filter": "whole || datum.inside" if interactive else "datum.inside"}]
    x = _accuracy("clean", "Clean accuracy", drawing.clean, interactive)
    y = _accuracy("robust", "Robust accuracy", drawing.robust, interactive)
    colour, shape, text_colour = (look(looks, attribute, theme) for attribute in ("colour", "shape", "text"))
    tooltip = [
        {"field": "strategy", "title": "Strategy", "type": "nominal"},
        {"field": "name", "title": "Run", "type": "nominal"},
        {"field": "config", "title": "Configuration", "type": "nominal"},
        {"field": "seed", "title": "Seed", "type": "nominal"},
        {"field": "step", "title": "Step", "type": "quantitative", "format": ","},
        {"field": "clean", "title": "Clean", "type": "quantitative", "format": ".1%"},
        {"field": "robust", "title": "Robust", "type": "quantitative", "format": ".1%"},
    ]
    hover = {"tooltip": tooltip} if interactive else {}
    mark: Spec = {"aria": False}
    crowded = drawing.points["run"].nunique() > _CROWD
    course: Spec = {
        "name": "course",
        "data": {"name": "points"},
        "transform": [*in_view, {"filter": "datum.strategy === isolated"}],
        "mark": {**mark, "clip": True, "type": "line", "strokeWidth": 1},
        "encoding": {
            "detail": {"field": "run", "type": "nominal"},
            "order": {"field": "step", "type": "quantitative"},
            "color": colour,
            "opacity": {"value": 0.6},
        },
    }
    layers: list[Spec] = [
        *([course] if interactive else []),
        {"name": "stairs", **staircases(drawing, looks, theme)},
        {
            "name": "visited",
            "data": {"name": "points"},
            "transform": [*in_view, {"filter": "!datum.chosen"}],
            "mark": {**mark, "type": "point", "filled": True, "size": 26},
            "encoding": {
                "color": colour,
                "shape": shape,
                "opacity": shown(theme, 0.25 if crowded else 0.45, 0.8),
                **hover,
            },
        },
        {
            "name": "chosen",
            "data": {"name": "points"},
            "transform": [{"filter": "datum.chosen"}],
            "mark": {
                **mark,
                "type": "point",
                "filled": True,
                "size": {"expr": "width < 420 ? 45 : 95"} if interactive else 95,
                "stroke": theme.paper,
                "strokeWidth": 1.2,
            },
            "encoding": {"color": colour, "shape": shape, "opacity": shown(theme, 1.0), **hover},
        },
        {
            "name": "origin",
            "data": {"name": "origin"},
            "transform": in_view,
            "mark": {**mark, "type": "point", "filled": False, "size": 95, "strokeWidth": 1.5},
            "encoding": {"color": {"value": theme.ink}, "opacity": {"value": 0.9}},
        },
    ]
    for side, (align, dx, dy) in SIDES.items():
        if side not in {*drawing.labels["side"]}:
            continue
        text = {
            "type": "text",
            "align": align,
            "baseline": "middle",
            "dx": dx,
            "dy": dy,
            "fontSize": 13,
            "fontWeight": 600,
            "limit": {"expr": "datum.room"},
            "aria": False,
        }
        # A wider copy in the colour of the paper keeps the name readable across lines.
        for layer in ({**text, "stroke": theme.paper, "strokeWidth": 4, "strokeJoin": "round"}, text):
            halo = "stroke" in layer
            layers.append(
                {
                    "data": {"name": "labels"},
                    "transform": [{"filter": f"datum.side === '{side}'"}],
                    "mark": layer,
                    "encoding": {
                        "text": {"field": "text", "type": "nominal"},
                        "color": {"value": theme.paper} if halo else text_colour,
                        "opacity": _label_opacity(drawing, interactive, halo),
                    },
                }
            )
    return {
        "$schema": SCHEMA,
        "description": description,
        "datasets": {
            "points": tidy(_by_rank(drawing.points, looks).to_dict("records")),
            "stairs": tidy(drawing.stairs.drop(columns="seed").to_dict("records")),
            "labels": tidy(drawing.labels.to_dict("records")),
            "origin": [_origin(drawing)],
        },
        "usermeta": behind(
            "points",
            ("strategy", "Strategy", ""),
            ("name", "Run", ""),
            ("config", "Configuration", ""),
            ("seed", "Seed", ""),
            ("step", "Step", ","),
            ("clean", "Clean", ".1%"),
            ("robust", "Robust", ".1%"),
            ("chosen", "Chosen", ""),
        ),
        "params": [*isolated(theme), *([{"name": "whole", "value": False}] if interactive else [])],
        "height": 430,
        "resolve": {"scale": {"color": "independent"}},
        "encoding": {"x": x, "y": y},
        "layer": layers,
    }


def _accuracy(field: str, title: str, domain: tuple[float, float], interactive: bool) -> Spec:
    ends: list[Any] = [*domain]
    if interactive:
        ends = [{"expr": f"whole ? {end} : {value}"} for end, value in enumerate(domain)]
    scale: Spec = {"domain": ends, "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"format": "~%"}}


def staircases(drawing: Drawing, looks: dict[str, Style], theme: Theme) -> Spec:
    """The layer of one staircase a seed; the more seeds there are, the fainter."""
    return {
        "data": {"name": "stairs"},
        "mark": {
            "clip": True,
            "aria": False,
            "type": "line",
            "strokeWidth": 2 if drawing.most_seeds == 1 else 1.6,
            "strokeJoin": "round",
            "interpolate": "step-before",
        },
        "encoding": {
            "detail": {"field": "line", "type": "nominal"},
            "order": {"value": None},
            "color": look(looks, "colour", theme),
            "strokeDash": look(looks, "dash", theme),
            "opacity": shown(theme, faintness(drawing), 0.9),
        },
    }


def faintness(drawing: Drawing) -> float:
    """The opacity of a staircase."""
    return max(0.2, 0.9 / float(drawing.most_seeds**0.5))


def _by_rank(points: pd.DataFrame, looks: dict[str, Style]) -> pd.DataFrame:
    places = {name: place for place, name in enumerate(looks)}
    return points.sort_values("strategy", key=lambda names: names.map(places), kind="stable")


def _origin(drawing: Drawing) -> Spec:
    clean, robust = drawing.origin
    (left, right), (bottom, top) = drawing.clean, drawing.robust
    inside = left <= clean <= right and bottom <= robust <= top
    return {"clean": clean, "robust": robust, "inside": inside}


def _label_opacity(drawing: Drawing, interactive: bool, halo: bool) -> Spec:
    """On a page, names hide where the plot is narrower or wider than they were placed for."""
    value = 0.85 if halo else 1
    if not interactive:
        return {"value": value}
    least, most = drawing.widths
    test = (
        f"width >= {least} && width <= {most} && !whole && (isolated === '' || isolated === datum.strategy)"
    )
    return {"condition": {"test": test, "value": value}, "value": 0}


def look(looks: dict[str, Style], attribute: str, theme: Theme) -> Spec:
    """Encode the strategy as a colour, shape or dash; on a page colours are its variables, which differ in the dark."""
    values: list[Any] = [getattr(style, attribute) for style in looks.values()]
    if theme is ON_PAGE and attribute in ("colour", "text"):
        values = [f"var(--{attribute}-{style.number})" for style in looks.values()]
    return {
        "field": "strategy",
        "type": "nominal",
        "scale": {"domain": [*looks], "range": values},
        "legend": None,
    }


def shown(theme: Theme, value: float, alone: float | None = None, hidden: float = 0.04) -> Spec:
    """Opacity: of everything, of the isolated strategy, and of the others beside it."""
    if theme is not ON_PAGE:
        return {"value": value}
    of_isolated = {"test": "isolated === datum.strategy", "value": value if alone is None else alone}
    return {"condition": [{"test": "isolated === ''", "value": value}, of_isolated], "value": hidden}


def isolated(theme: Theme) -> list[Spec]:
    """The parameter of :func:`shown`: the one strategy to show, or nothing. Only pages have one."""
    return [{"name": "isolated", "value": ""}] if theme is ON_PAGE else []


def padded(values: Iterable[float], least: float = 0.0) -> list[float]:
    """A range with room on both sides, within [least, 1]."""
    known = [*values]
    low, high = min(known), max(known)
    pad = max(0.08 * (high - low), 0.01)
    return [max(least, low - pad), min(1.0, high + pad)]


def behind(data: str, *columns: tuple[str, str, str]) -> Spec:
    """What the page shows as a table behind the plot: a data set, and (field, title, format) of its columns."""
    return {"table": {"data": data, "columns": [list(column) for column in columns]}}


def matrix(columns: Iterable[str], rows: Iterable[str], axis: Spec) -> Spec:
    """Places of cells in a matrix: the fields ``column``, named above it, and ``row``, in these orders."""
    above = {**axis, "orient": "top", "labelAngle": 0}
    return {
        "x": {"field": "column", "type": "ordinal", "sort": [*columns], "axis": above},
        "y": {"field": "row", "type": "ordinal", "sort": [*rows], "axis": axis},
    }


def tidy(rows: list[Any]) -> list[Spec]:
    """Floats to four digits: enough for pixels, and half the size of the page."""
    return [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
