"""What a report says of clean, robust and shifted accuracy together: three planes, volumes, and slopes."""

from collections.abc import Sequence
from html import escape

import pandas as pd

from paretune.frontiers.tracking import Slope, slope_numbers
from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.marks import legend, symbol
from paretune.report.sections import Part, figure
from paretune.report.specs.frontier import ON_PAGE, Spec
from paretune.report.specs.planes import TITLES, course_spec, plane_spec
from paretune.report.tables import area_table, pair_table, table

_PLANES = (("clean", "robust"), ("clean", "shifted"), ("robust", "shifted"))


def third_axis(
    number: int, title: str, condition: Condition, rows: pd.DataFrame, looks: dict[str, Style]
) -> Part:
    """Planes, volumes and slopes of a condition that has them.

    Args:
        number: of the condition; ids end with it.
        title: what it is of.
        condition: with ``volumes``.
        rows: its points, as :func:`paretune.report.drawing.as_points` gives them.
        looks: of the strategies.
    """
    volumes = condition.volumes
    if volumes is None:
        return Part("", {})
    shown = {area.strategy: looks[area.strategy] for area in volumes.areas}
    points = _points(rows, [*shown])
    plots: dict[str, Spec] = {}
    planes = []
    for x, y in _PLANES:
        place = f"plane-{x}-{y}-{number}"
        plots[place] = plane_spec(points, shown, ON_PAGE, x, y)
        name = f"{TITLES[y]} against {TITLES[x].lower()}"
        planes.append(figure(place, name, ""))
    html = [
        f"<h3>{escape(title)}</h3>",
        f'<div class="verdict"><p>{escape(volumes.verdict)}</p></div>',
        '<p class="small">Large areas in all three planes make a large volume. Marks are the checkpoints that clean and '
        "robust accuracy choose on the select split; a line is the front of one training seed in its plane. Shifted "
        f"accuracy is that on all {volumes.shifted:,} images elsewhere together, each image once, and chooses nothing.</p>",
        legend(shown, looks, {area.strategy: f"{area.area:.3f}" for area in volumes.areas}),
        f'<div class="many">{"".join(planes)}</div>',
        f'<p class="small">The volume starts at {_start(volumes)}: the share of all demands (clean, robust and shifted '
        "accuracy at least so high) that a checkpoint meets, as the area is that of demands on two.</p>",
        area_table(volumes, looks),
        pair_table(volumes) if volumes.differences else "",
        "".join(f'<p class="small">{escape(note)}</p>' for note in volumes.notes),
    ]
    courses = []
    for x in ("clean", "robust"):
        place = f"course-{x}-{number}"
        on = [slope for slope in condition.slopes if slope.accuracy == x]
        plots[place] = course_spec(points, on, shown, ON_PAGE, x)
        courses.append(
            figure(place, f"Shifted against {x} accuracy along training.", "Lines have the slopes below.")
        )
    html += [
        "<h4>Does shifted accuracy track clean accuracy?</h4>",
        f'<div class="pair">{"".join(courses)}</div>',
        _slopes(condition.slopes, condition.level, looks),
        '<p class="small">A slope is how many points of shifted accuracy go with one point of the other, along the training '
        "of each run and over all its checkpoints, without the noise of sampling images. It and the correlation near 1 "
        "say that the two move together. They do not say that one makes the other, as both follow training; clean and "
        "robust accuracy move together too, so neither slope is the part of one alone; and strategies with equal slopes "
        "may differ in shifted accuracy at the same clean accuracy.</p>",
    ]
    return Part("".join(html), plots)


def _points(rows: pd.DataFrame, strategies: Sequence[str]) -> pd.DataFrame:
    """Those of the strategies that have a volume, by rank."""
    places = {name: place for place, name in enumerate(strategies)}
    measured = rows[rows["label"].isin(places)]
    points = pd.DataFrame(
        {
            "strategy": measured["label"],
            "seed": measured["seed"],
            "step": measured["step"],
            "clean": measured["clean"].astype(float),
            "robust": measured["robust"].astype(float),
            "shifted": measured["clean_elsewhere"].astype(float),
            "chosen": measured["chosen"],
        }
    )
    return points.sort_values("strategy", key=lambda names: names.map(places), kind="stable")


def _slopes(slopes: Sequence[Slope], level: float, looks: dict[str, Style]) -> str:
    (_, *head), rows = slope_numbers(slopes)
    named = [
        (f"{symbol(looks[name])}<span>{escape(name)}</span>", *map(escape, cells)) for name, *cells in rows
    ]
    title = f"Slope of shifted accuracy along training, with {100 * level:g}% intervals"
    return table(title, ("Strategy", *(name[0].upper() + name[1:] for name in head)), named)


def _start(volumes: Condition) -> str:
    clean, robust, shifted = volumes.corner or (0.0, 0.0, 0.0)
    return f"clean {100 * clean:g}%, robust {100 * robust:g}%, shifted {100 * shifted:g}%"
