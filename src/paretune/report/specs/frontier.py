"""Vega-Lite specifications as plain dictionaries: https://vega.github.io/vega-lite/docs/

Here is what all of them share, and the frontier plot; the other plots have files of their own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from paretune.report.drawing import Drawing, Style

Spec = dict[str, Any]

_CROWD = 10  # runs; of more, the course of training stays fainter until one strategy is isolated
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
            "legend": {**text, "symbolSize": 90, "title": None, "orient": "bottom", "labelLimit": 560},
            "title": {"color": self.ink, "fontSize": 15, "fontWeight": 600, "anchor": "start", "offset": 14},
        }


ON_PAGE = Theme(
    "currentColor", "var(--surface)", "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
)
ON_WHITE = Theme("#1b1f24", "#ffffff", "Helvetica, Arial, 'Liberation Sans', sans-serif")


def frontier_spec(drawing: Drawing, looks: dict[str, Style], theme: Theme, *, description: str) -> Spec:
    """Clean against robust accuracy: training as thin lines, chosen checkpoints as large marks, staircases.

    On a page, the parameter ``isolated`` holds the one strategy to show, or nothing; ``whole`` shows all points.
    """
    interactive = theme is ON_PAGE
    in_view = [{"filter": "whole || datum.inside" if interactive else "datum.inside"}]
    x = _accuracy("clean", "Clean accuracy", drawing.clean, interactive)
    y = _accuracy("robust", "Robust accuracy", drawing.robust, interactive)
    colour, shape, text_colour = (look(looks, attribute, theme) for attribute in ("colour", "shape", "text"))
    with_legend = colour, shape
    if not interactive and len(drawing.labels) < len(looks):
        legend = {"columns": 3 if max(map(len, looks)) < 26 else 1}
        with_legend = {**colour, "legend": legend}, {**shape, "legend": legend}

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
    mark: Spec = {"clip": True, "aria": False}
    crowded = drawing.points["run"].nunique() > _CROWD
    shade: Spec = {
        "name": "bands",
        "data": {"name": "stairs"},
        "mark": {**mark, "type": "area", "interpolate": "step-before"},
        "encoding": {
            "order": {"value": None},
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "color": colour,
            "opacity": shown(theme, 0.13, 0.28, 0.0),
        },
    }
    layers: list[Spec] = [
        *([shade] if drawing.shaded else []),
        {
            "name": "course",
            "data": {"name": "points"},
            "transform": in_view,
            "mark": {**mark, "type": "line", "strokeWidth": 1, "interpolate": "linear"},
            "encoding": {
                "detail": {"field": "run", "type": "nominal"},
                "order": {"field": "step", "type": "quantitative"},
                "color": colour,
                "opacity": shown(theme, 0.12 if crowded else 0.28, 0.7, 0.03),
            },
        },
        {
            "name": "stairs",
            "data": {"name": "stairs"},
            "mark": {
                **mark,
                "type": "line",
                "strokeWidth": 2.5,
                "strokeJoin": "round",
                "interpolate": "step-before",
            },
            "encoding": {"order": {"value": None}, "color": colour, "opacity": shown(theme, 0.95)},
        },
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
            "encoding": {
                "color": with_legend[0],
                "shape": with_legend[1],
                "opacity": shown(theme, 1.0),
                **hover,
            },
        },
    ]
    for side, align, dx, dy in (("right", "left", 8, -11), ("left", "right", -8, 12)):
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
            "clip": False,
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
                        "opacity": _label_opacity(interactive, halo),
                    },
                }
            )
    return {
        "$schema": SCHEMA,
        "description": description,
        "datasets": {
            name: tidy(getattr(drawing, name).to_dict("records")) for name in ("points", "stairs", "labels")
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
        "resolve": {"scale": {"color": "independent", "shape": "independent"}},
        "encoding": {"x": x, "y": y},
        "layer": layers,
    }


def _accuracy(field: str, title: str, domain: tuple[float, float], interactive: bool) -> Spec:
    ends: list[Any] = [*domain]
    if interactive:
        ends = [{"expr": f"whole ? {end} : {value}"} for end, value in enumerate(domain)]
    scale: Spec = {"domain": ends, "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"format": "~%"}}


def _label_opacity(interactive: bool, halo: bool) -> Spec:
    """On a page, names hide on narrow screens, where they would cover what they name."""
    value = 0.85 if halo else 1
    if not interactive:
        return {"value": value}
    test = "width > 420 && !whole && (isolated === '' || isolated === datum.strategy)"
    return {"condition": {"test": test, "value": value}, "value": 0}


def look(looks: dict[str, Style], attribute: str, theme: Theme) -> Spec:
    """Encode the strategy as a colour or shape; on a page colours are its variables, which differ in the dark."""
    values = [getattr(style, attribute) for style in looks.values()]
    if theme is ON_PAGE and attribute != "shape":
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


def padded(values: Iterable[float]) -> list[float]:
    """A range with room on both sides, within [0, 1]."""
    known = [*values]
    low, high = min(known), max(known)
    pad = max(0.08 * (high - low), 0.01)
    return [max(0.0, low - pad), min(1.0, high + pad)]


def behind(data: str, *columns: tuple[str, str, str]) -> Spec:
    """What the page shows as a table behind the plot: a data set, and (field, title, format) of its columns."""
    return {"table": {"data": data, "columns": [list(column) for column in columns]}}


def tidy(rows: list[Any]) -> list[Spec]:
    """Floats to four digits: enough for pixels, and half the size of the page."""
    return [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
