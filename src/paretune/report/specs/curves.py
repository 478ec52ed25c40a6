"""The specifications of two curves: expected area against budget, and accuracy against epsilon."""

from collections.abc import Sequence

from paretune.frontiers.budget import BudgetCurve
from paretune.report.drawing import Style
from paretune.report.robustness import RobustnessCurve
from paretune.report.specs.frontier import SCHEMA, Spec, Theme, behind, isolated, look, padded, shown, tidy


def budget_spec(curves: Sequence[BudgetCurve], looks: dict[str, Style], theme: Theme) -> Spec:
    """The area that fewer evaluated points would have given, with its interval over the report examples."""
    rows: list[Spec] = [
        {"strategy": curve.strategy, "points": k, "area": area, "low": low, "high": high}
        for curve in curves
        for k, area, low, high in zip(curve.points, curve.areas, curve.low, curve.high, strict=True)
    ]
    most = max(row["points"] for row in rows)
    x: Spec = {
        "field": "points",
        "type": "quantitative",
        "title": "Checkpoints evaluated per seed",
        "scale": {"type": "log", "domain": [1, most], "nice": False},
        "axis": {
            "format": "~s",
            "values": [*(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n < most), most],
        },
    }
    y: Spec = {
        "field": "area",
        "type": "quantitative",
        "title": "Expected area",
        "scale": {
            "domain": padded(row[end] for row in rows for end in ("low", "high")),
            "zero": False,
            "nice": False,
        },
        "axis": {"format": ".2~f"},
    }
    tooltip = [
        {"field": "strategy", "title": "Strategy", "type": "nominal"},
        {"field": "points", "title": "Checkpoints", "type": "quantitative", "format": ","},
        *_numbers(("area", "Expected area"), ("low", "Low"), ("high", "High")),
    ]
    last = ", ".join(f"{c.strategy} {c.areas[0]:.3f} to {c.areas[-1]:.3f}" for c in curves)
    return {
        **_curves(rows, (x, y), tooltip, looks, theme, few=f"datum.points === {most}"),
        "description": f"Expected area from one to {most} evaluated checkpoints: {last}",
        "usermeta": behind(
            "rows",
            ("strategy", "Strategy", ""),
            ("points", "Checkpoints", ","),
            ("area", "Expected area", ".4f"),
            ("low", "Low", ".4f"),
            ("high", "High", ".4f"),
        ),
    }


def epsilon_spec(curves: Sequence[RobustnessCurve], looks: dict[str, Style], theme: Theme) -> Spec:
    """Accuracy against epsilon of one task and attack; the band holds all training seeds."""
    linf = curves[0].threat == "Linf"
    rows: list[Spec] = [
        {
            "strategy": curve.strategy,
            "epsilon": epsilon * 255 if linf else epsilon,
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "expected": curve.expected,
        }
        for curve in curves
        for epsilon, accuracy, low, high in zip(
            curve.epsilons, curve.accuracies, curve.low, curve.high, strict=True
        )
    ]
    x: Spec = {
        "field": "epsilon",
        "type": "quantitative",
        "title": "Epsilon in units of 1/255" if linf else f"Epsilon, {curves[0].threat} norm",
        "scale": {"nice": False, "zero": True},
        "axis": {"format": ".3~g", "values": sorted({row["epsilon"] for row in rows})},
    }
    y: Spec = {
        "field": "accuracy",
        "type": "quantitative",
        "title": "Accuracy",
        "scale": {"domain": [0, max(row["high"] for row in rows)], "nice": True},
        "axis": {"format": "~%"},
    }
    tooltip = [
        {"field": "strategy", "title": "Strategy", "type": "nominal"},
        {"field": "epsilon", "title": x["title"], "type": "quantitative", "format": ",.4~r"},
        {"field": "accuracy", "title": "Accuracy", "type": "quantitative", "format": ".1%"},
        *_numbers(("expected", "Expected robustness")),
    ]
    return {
        **_curves(rows, (x, y), tooltip, looks, theme),
        "description": "Accuracy against epsilon, expected robustness: "
        + ", ".join(f"{c.strategy} {c.expected:.3f}" for c in curves),
        "usermeta": behind(
            "rows",
            ("strategy", "Strategy", ""),
            ("epsilon", x["title"], ",.4~r"),
            ("accuracy", "Accuracy", ".1%"),
            ("low", "Lowest seed", ".1%"),
            ("high", "Highest seed", ".1%"),
            ("expected", "Expected robustness", ".4f"),
        ),
    }


def _curves(
    rows: list[Spec],
    axes: tuple[Spec, Spec],
    tooltip: list[Spec],
    looks: dict[str, Style],
    theme: Theme,
    few: str = "true",
) -> Spec:
    """A line with a band for each strategy, and its marks at the rows that ``few`` selects."""
    x, y = axes
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    mark: Spec = {"clip": True, "aria": False}
    return {
        "$schema": SCHEMA,
        "datasets": {"rows": tidy(rows)},
        "data": {"name": "rows"},
        "params": isolated(theme),
        "height": 250,
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "name": "bands",
                "mark": {**mark, "type": "area"},
                "encoding": {
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "opacity": shown(theme, 0.13, 0.25, 0.0),
                },
            },
            {
                "name": "lines",
                "mark": {**mark, "type": "line", "strokeWidth": 2.2},
                "encoding": {"y": y, "opacity": shown(theme, 0.95, hidden=0.1)},
            },
            {
                "name": "marks",
                "transform": [{"filter": few}],
                "mark": {"type": "point", "filled": True, "size": 75, "aria": False},
                "encoding": {"y": y, "shape": shape, "opacity": shown(theme, 1.0, hidden=0.1)},
            },
            {
                # Wide and invisible, so that lines are easily pointed at.
                "name": "targets",
                "mark": {**mark, "type": "point", "filled": True, "size": 200, "opacity": 0},
                "encoding": {"y": y, "tooltip": tooltip},
            },
        ],
    }


def _numbers(*fields: tuple[str, str]) -> list[Spec]:
    return [
        {"field": field, "title": title, "type": "quantitative", "format": ".4f"} for field, title in fields
    ]
