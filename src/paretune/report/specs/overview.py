"""The specification of a small frontier plot, one of many beside each other."""

from paretune.report.drawing import Drawing, Style
from paretune.report.specs.frontier import SCHEMA, Spec, Theme, isolated, look, shown, staircases, tidy


def overview_spec(drawing: Drawing, looks: dict[str, Style], theme: Theme, *, description: str) -> Spec:
    """Staircases and chosen checkpoints, each plot in the range of its own frontiers."""
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))

    def accuracy(field: str, domain: tuple[float, float]) -> Spec:
        scale: Spec = {"domain": [*domain], "nice": False, "zero": False}
        axis: Spec = {"format": "~%", "tickCount": 3, "labelFontSize": 11, "labelPadding": 4}
        return {"field": field, "type": "quantitative", "title": None, "scale": scale, "axis": axis}

    tooltip = [
        {"field": "strategy", "title": "Strategy", "type": "nominal"},
        {"field": "clean", "title": "Clean", "type": "quantitative", "format": ".1%"},
        {"field": "robust", "title": "Robust", "type": "quantitative", "format": ".1%"},
    ]
    chosen = drawing.points[drawing.points["chosen"]][["strategy", "clean", "robust"]]
    return {
        "$schema": SCHEMA,
        "description": description,
        "datasets": {
            "stairs": tidy(drawing.stairs.drop(columns="seed").to_dict("records")),
            "chosen": tidy(chosen.to_dict("records")),
        },
        "params": isolated(theme),
        "height": 150,
        "encoding": {
            "x": accuracy("clean", drawing.clean),
            "y": accuracy("robust", drawing.robust),
        },
        "resolve": {"scale": {"color": "independent"}},
        "layer": [
            {"name": "stairs", **staircases(drawing, looks, theme)},
            {
                "name": "chosen",
                "data": {"name": "chosen"},
                "mark": {"type": "point", "filled": True, "size": 30, "aria": False},
                "encoding": {
                    "color": colour,
                    "shape": shape,
                    "opacity": shown(theme, 0.9, hidden=0.05),
                    "tooltip": tooltip,
                },
            },
        ],
    }
