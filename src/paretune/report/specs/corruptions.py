"""The specification of the heat map of corruptions: kinds below each other, strategies beside each other, by severity."""

import json
from collections.abc import Sequence

from paretune.frontiers.elsewhere import Elsewhere
from paretune.report.drawing import Style
from paretune.report.labels import shorten
from paretune.report.specs.frontier import ON_PAGE, SCHEMA, Spec, Theme, behind, isolated, shown, tidy

_CELL = 22  # pixels, height of a row
_GAP = 0.7  # of a cell, between strategies
_ROOM = 30  # pixels of width from which a cell has room for its number


def corruption_spec(results: Sequence[Elsewhere], looks: dict[str, Style], theme: Theme) -> Spec:
    """The fuller a cell, the more images are right. Cells of a strategy are its severities, from left to right.

    Args:
        results: of one accuracy, by rank.
        looks: of the strategies.
        theme: of the surroundings.
    """
    corruptions = results[0].corruptions
    kinds = [*dict.fromkeys(kind for kind, _ in corruptions.values())]
    severities = sorted({severity for _, severity in corruptions.values()})
    step = len(severities) + _GAP
    cells: list[Spec] = []
    for rank, result in enumerate(results):
        for name, (kind, severity) in corruptions.items():
            accuracy, low, high = result.places[name]
            left = rank * step + severities.index(severity)
            cells.append(
                {
                    "strategy": result.strategy,
                    "kind": kind,
                    "severity": severity,
                    "accuracy": accuracy,
                    "low": low,
                    "high": high,
                    "left": left,
                    "right": left + 1,
                }
            )
    values = [cell["accuracy"] for cell in cells]
    least, most = min(values), max(values)
    names = json.dumps([shorten(result.strategy) for result in results])
    middles = [rank * step + len(severities) / 2 for rank in range(len(results))]
    width = len(results) * step - _GAP
    fill = "var(--colour-0)" if theme is ON_PAGE else "#0072B2"
    x: Spec = {
        "field": "left",
        "type": "quantitative",
        "title": None,
        "scale": {"domain": [0, width], "nice": False, "zero": False},
        "axis": {
            "values": middles,
            "labelExpr": f"{names}[round((datum.value - {len(severities) / 2}) / {step})]",
            "labelAngle": -40,
            "labelAlign": "right",
            "labelLimit": 110,
            "labelOverlap": False,
            "tickCount": len(results),  # that of the theme would thin the values
            "grid": False,
        },
    }
    percent = {"type": "quantitative", "format": ".1%"}
    return {
        "$schema": SCHEMA,
        "description": f"Accuracy under {len(kinds)} corruptions at severities {severities[0]} to {severities[-1]}, "
        f"from {least:.0%} to {most:.0%}; over all of them: "
        + ", ".join(f"{result.strategy} {result.corrupted[0]:.1%}" for result in results if result.corrupted),
        "datasets": {"cells": tidy(cells)},
        "data": {"name": "cells"},
        "usermeta": behind(
            "cells",
            ("strategy", "Strategy", ""),
            ("kind", "Corruption", ""),
            ("severity", "Severity", ","),
            ("accuracy", "Accuracy", ".1%"),
            ("low", "Low", ".1%"),
            ("high", "High", ".1%"),
        ),
        "params": isolated(theme),
        "height": _CELL * len(kinds),
        "encoding": {
            "x": x,
            "y": {
                "field": "kind",
                "type": "ordinal",
                "sort": kinds,
                "axis": {
                    "title": None,
                    "grid": False,
                    "labelLimit": 120,
                    "labelExpr": "replace(datum.value, /_/g, ' ')",
                },
            },
        },
        "layer": [
            {
                "name": "cells",
                "mark": {
                    "type": "rect",
                    "aria": False,
                    "stroke": theme.paper,
                    "strokeWidth": 1,
                    "fill": fill,
                    "fillOpacity": {
                        "expr": f"0.04 + 0.6 * (datum.accuracy - {least:.4f}) / {max(most - least, 1e-4):.4f}"
                    },
                },
                "encoding": {
                    "x2": {"field": "right"},
                    "opacity": shown(theme, 1.0, hidden=0.12),
                    "tooltip": [
                        {"field": "strategy", "title": "Strategy", "type": "nominal"},
                        {"field": "kind", "title": "Corruption", "type": "nominal"},
                        {"field": "severity", "title": "Severity", "type": "quantitative"},
                        {"field": "accuracy", "title": "Accuracy", **percent},
                        {"field": "low", "title": "Low", **percent},
                        {"field": "high", "title": "High", **percent},
                    ],
                },
            },
            {
                "mark": {"type": "text", "fontSize": 10, "aria": False, "color": theme.ink},
                "encoding": {
                    "x": {"field": "middle", "type": "quantitative"},
                    "text": {"field": "accuracy", "type": "quantitative", "format": ".0%"},
                    "opacity": {
                        "condition": {"test": f"width >= {_ROOM * width:.0f}", "value": 0.9},
                        "value": 0,
                    },
                },
                "transform": [{"calculate": "datum.left + 0.5", "as": "middle"}],
            },
        ],
    }
