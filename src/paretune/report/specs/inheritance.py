"""The specification of the matrix of one method: what it was fine-tuned on, and what that changed elsewhere."""

from paretune.frontiers.inheritance import Inheritance, Inherited
from paretune.report.labels import shorten
from paretune.report.specs.frontier import ON_PAGE, SCHEMA, Spec, Theme, behind, matrix, tidy

_CELL = 34  # pixels, height of a row
_ROOM = 20  # pixels of width from which a cell has room for a number


def change_spec(inheritance: Inheritance, method: Inherited, strongest: float, theme: Theme) -> Spec:
    """Rows are what was fine-tuned on, columns what was measured; a cell has the change of accuracy in points.

    Blue is a gain, vermilion a loss, the paler the smaller. What is framed is the task itself; the column P is the task
    of pretraining.

    Args:
        inheritance: the method is of.
        method: to draw.
        strongest: the largest change that any picture shows, which has the full colour.
        theme: of the surroundings.
    """
    tasks = inheritance.tasks
    numbers = {name: f"{place}" for place, name in enumerate(tasks, start=1)}
    columns = {**numbers, **({} if inheritance.pretraining is None else {inheritance.pretraining: "P"})}
    rows = {name: f"{numbers[name]}  {shorten(name)}" for name in tasks}
    cells = [
        {
            "row": rows[task],
            "column": columns[name],
            "fine_tuned_on": task,
            "measured_on": name,
            "before": inheritance.before[name],
            "after": accuracy,
            "change": accuracy - inheritance.before[name],
            "itself": name == task,
        }
        for task, measured in method.after.items()
        for name, accuracy in measured.items()
    ]
    gain, loss = ("var(--colour-0)", "var(--colour-1)") if theme is ON_PAGE else ("#0072B2", "#D55E00")
    share, signed = ({"format": form, "type": "quantitative"} for form in (".1%", "+.1%"))
    axis: Spec = {"title": None, "grid": False, "labelLimit": {"expr": "width < 300 ? 92 : 150"}}
    ri = "; ".join(f"{task} {method.ri[task].estimate:+.3f}" for task in tasks)
    return {
        "$schema": SCHEMA,
        "description": f"Changes of {inheritance.accuracy} accuracy by {method.method}; RI of the task that was fine-tuned "
        f"on: {ri}; mRI {method.mri.estimate:+.3f}",
        "datasets": {"cells": tidy(cells)},
        "data": {"name": "cells"},
        "usermeta": behind(
            "cells",
            ("fine_tuned_on", "Fine-tuned on", ""),
            ("measured_on", "Measured on", ""),
            ("before", "Before", ".1%"),
            ("after", "After", ".1%"),
            ("change", "Change", "+.1%"),
        ),
        "height": _CELL * len(tasks),
        "encoding": matrix(columns.values(), rows.values(), axis),
        "layer": [
            {
                "mark": {
                    "type": "rect",
                    "cornerRadius": 3,
                    "aria": False,
                    "stroke": theme.paper,
                    "strokeWidth": 2,
                    "fillOpacity": {
                        "expr": f"0.04 + 0.66 * min(1, abs(datum.change) / {max(strongest, 0.01):.4f})"
                    },
                },
                "encoding": {
                    "fill": {"condition": {"test": "datum.change >= 0", "value": gain}, "value": loss},
                },
            },
            {
                "transform": [{"filter": "datum.itself"}],
                "mark": {
                    "type": "rect",
                    "cornerRadius": 3,
                    "aria": False,
                    "fill": None,
                    "stroke": theme.ink,
                    "strokeWidth": 1.5,
                },
            },
            {
                "mark": {
                    "type": "text",
                    "fontSize": {"expr": f"width < {28 * len(columns)} ? 9 : 11"},
                    "aria": False,
                    "color": theme.ink,
                    "text": {"expr": "replace(format(100 * datum.change, '+.0f'), '-', '−')"},
                },
                "encoding": {
                    "opacity": {
                        "condition": {"test": f"width >= {_ROOM * len(columns)}", "value": 1},
                        "value": 0,
                    }
                },
            },
            {
                # Above the texts, which would hide the cells from the pointer.
                "name": "targets",
                "mark": {"type": "rect", "opacity": 0, "aria": False},
                "encoding": {
                    "tooltip": [
                        {"field": "fine_tuned_on", "title": "Fine-tuned on", "type": "nominal"},
                        {"field": "measured_on", "title": "Measured on", "type": "nominal"},
                        {"field": "before", "title": "Before", **share},
                        {"field": "after", "title": "After", **share},
                        {"field": "change", "title": "Change", **signed},
                    ]
                },
            },
        ],
    }
