"""The page of an analysis of somebody's table: frontiers, areas and ranks of any number of groups and tasks."""

import dataclasses
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd

from paretune.frontiers.tables.analysis import Analysis
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.frontiers.tables.spreadsheet import csv_text
from paretune.report.analysis_tables import area_table, difference_table, task_table
from paretune.report.drawing import COLOURS, DASHES, TEXT_COLOURS, Drawing, Style, as_points, draw, styles
from paretune.report.figures import describe
from paretune.report.labels import area_text, origin_text
from paretune.report.marks import legend, symbol
from paretune.report.overview import Small, across_html, by_rank, small_multiples
from paretune.report.sections import Part, plural
from paretune.report.shell import assemble, csv_link, text_of
from paretune.report.specs.areas import forest_spec
from paretune.report.specs.frontier import ON_PAGE, ON_PAGE_WIDTHS, Spec, frontier_spec
from paretune.runs import disk

_POINTS = 3000  # drawn on one page, all tasks together
_FEWEST = 80  # drawn of a task, if it has them
_DISTINCT = 2 * len(COLOURS)  # groups up to which each has a look of its own
_COLOURED = (
    len(COLOURS) - 1
)  # groups with a colour where there are more; the last colour, grey, is for the others
_LISTED = 20  # areas in one picture
_RANKED = 10  # groups over tasks that are shown
_ROWS = 600  # areas up to which each has its row in a table; above, those of a picture have
_PLACE = ("seed", "step", "clean", "robust")
_OPEN = 3  # tasks up to which all sections are open


def write_analysis(
    analysis: Analysis, out: str | Path = "paretune-analysis", *, title: str | None = None
) -> Path:
    """Write ``areas.csv`` and ``report.html``, one file that works without a network, into a directory.

    Args:
        analysis: from :func:`paretune.analyze`.
        out: the directory; it is made if needed.
        title: the page's heading.

    Returns:
        The path of the page.

    Raises:
        ImportError: vl-convert is not installed; areas.csv is written all the same.
    """
    path = Path(out) / "report.html"
    disk.write_text(path.with_name("areas.csv"), csv_text(analysis.to_frame()))
    disk.write_text(path, _page(analysis, title or "Robustness and accuracy"))
    return path


def _page(analysis: Analysis, title: str) -> str:
    points = as_points(_drawable(analysis))
    looks = _looks(analysis)
    drawings = []
    parts = []
    several = len(analysis.tasks)
    limit = max(_FEWEST, _POINTS // several)
    rows_each = None if len(analysis.areas) <= _ROWS else _LISTED
    for number, task in enumerate(analysis.tasks):
        rows = points[points["task"] == task.task]
        front = [
            area.strategy
            for area in task.areas
            if area.strategy == task.best.strategy or _stands_out(area.strategy, looks)
        ]
        drawing = _draw(rows, front, limit, analysis.reference)
        drawings.append(drawing)
        part = _section(number, task, drawing, rows, front, looks, several > _OPEN, rows_each)
        _as_rows(part.plots[f"frontier-{number}"], analysis.points)
        parts.append(part)
    if several > 1:
        parts.insert(0, _overview(analysis, drawings, looks))
    table = analysis.to_frame()
    method = Template(text_of("analysis_method.html")).substitute(
        reference=f"({analysis.reference[0]:g}, {analysis.reference[1]:g})",
        level=f"{100 * analysis.tasks[0].level:g}%",
        margin=f"{analysis.tasks[0].margin:g}",
        save=csv_link("areas.csv", csv_text(table), "Save the areas as CSV"),
    )
    counts = ((len(looks), "group"), (several, "task"), (len(points), "row"))
    return assemble(
        title=title,
        summary=" · ".join(f"{count:,} {plural(noun, count)}" for count, noun in counts),
        body="\n".join([*(part.html for part in parts), method]),
        plots={name: plot for part in parts for name, plot in part.plots.items()},
    )


def _drawable(analysis: Analysis) -> pd.DataFrame:
    """The rows as :func:`paretune.report.drawing.as_points` reads them; no line joins them, as no training does."""
    place = "line" if "line" in analysis.points else "row"
    points = analysis.points.rename(columns={"group": "strategy", place: "step"})
    return points.assign(path=points["step"].astype(str))


def _looks(analysis: Analysis) -> dict[str, Style]:
    """A colour and a shape for each group, in all tasks the same; of many groups only the best have colours."""
    groups = sorted({area.strategy for area in analysis.areas})
    if len(groups) <= _DISTINCT:
        return styles(groups)
    total = dict.fromkeys(
        groups, 0.0
    )  # of ranks, as fractions; a task that a group is not in counts as the last
    for task in analysis.tasks:
        ranks = {
            area.strategy: rank / len(task.areas) for area, rank in zip(task.areas, task.ranks, strict=True)
        }
        for group in groups:
            total[group] += ranks.get(group, 1.0)
    best = sorted(groups, key=lambda group: (total[group], group))[:_COLOURED]
    grey = Style(_COLOURED, COLOURS[-1], TEXT_COLOURS[-1], "circle", DASHES[0])
    return {**dict.fromkeys(groups, grey), **styles(best)}


def _stands_out(group: str, looks: dict[str, Style]) -> bool:
    return len(looks) <= _DISTINCT or looks[group].number < _COLOURED


def _draw(rows: pd.DataFrame, front: list[str], limit: int, origin: tuple[float, float]) -> Drawing:
    """The plot of ``front``, and small marks for all other groups behind it."""
    in_front = rows["label"].isin(front)
    drawing = draw(rows[in_front], widths=ON_PAGE_WIDTHS, limit=limit, origin=origin)
    others = rows[~in_front]
    room = min(len(others), limit - len(drawing.points))
    if room <= 0:
        return drawing
    others = others.iloc[np.arange(room) * len(others) // room]
    marks = pd.DataFrame({"strategy": others["label"], **{name: others[name] for name in _PLACE}})
    inside = marks["clean"].between(*drawing.clean) & marks["robust"].between(*drawing.robust)
    marks = marks.assign(chosen=False, inside=inside).reindex(columns=drawing.points.columns, fill_value="")
    return dataclasses.replace(drawing, points=pd.concat([marks, drawing.points], ignore_index=True))


def _as_rows(spec: Spec, points: pd.DataFrame) -> None:
    """Marks are rows of a table, and not evaluations of a run: what they are called, and no lines between them."""
    accuracy = {"type": "quantitative", "format": ".1%"}
    place = "Line" if "line" in points else "Row"
    tooltip = [
        {"field": "strategy", "title": "Group", "type": "nominal"},
        {"field": "seed", "title": "Seed", "type": "nominal"},
        {"field": "step", "title": place, "type": "quantitative", "format": ","},
        {"field": "clean", "title": "Clean", **accuracy},
        {"field": "robust", "title": "Robust", **accuracy},
    ]
    if not (points["seed"] != "").any():
        del tooltip[1]
    used = [channel["field"] for channel in tooltip] + ["chosen", "inside"]
    rows = spec["datasets"]["points"]
    spec["datasets"]["points"] = [{name: row[name] for name in used} for row in rows]
    spec["layer"] = [layer for layer in spec["layer"] if layer.get("name") != "course"]
    for layer in spec["layer"]:
        if "tooltip" in layer["encoding"]:
            layer["encoding"]["tooltip"] = tooltip
    columns = [[channel["field"], channel["title"], channel.get("format", "")] for channel in tooltip]
    spec["usermeta"] = {"table": {"data": "points", "columns": columns}}


def _section(
    number: int,
    task: TaskRanking,
    drawing: Drawing,
    rows: pd.DataFrame,
    front: list[str],
    looks: dict[str, Style],
    folded: bool,
    most: int | None,
) -> Part:
    """One task; ``most`` rows in each table."""
    shown = {area.strategy: looks[area.strategy] for area in task.areas}
    in_front = {group: looks[group] for group in front}
    plots = {
        f"frontier-{number}": frontier_spec(drawing, shown, ON_PAGE, description=describe(rows, in_front)),
        f"forest-{number}": forest_spec(task.areas[:_LISTED], shown, ON_PAGE),
    }
    others = [area.strategy for area in task.areas if area.strategy not in in_front]
    keys = legend(
        front, looks, {area.strategy: area_text(area.area, area.low, area.high) for area in task.areas}
    )
    if others and most is None:
        keys += f"<details><summary>{len(others)} other groups</summary>{legend(others, looks)}</details>"
    hidden, outside = len(rows) - len(drawing.points), drawing.outside
    html = Template(text_of("analysis.html")).substitute(
        number=number,
        open="" if folded else "open",
        heading=escape(task.task) or "All rows",
        brief=f'<p class="brief">{_brief(task, looks)}</p>' if folded else "",
        verdict=escape(task.sentence + (f" {task.volumes.sentence}" if task.volumes else "")),
        covers=escape(task.covers),
        origin=origin_text(drawing.origin, drawing.clean, drawing.robust),
        mean=", mean over seeds" if any(len(area.seeds) > 1 for area in task.areas) else "",
        interval=f", with its {100 * task.level:g}% interval"
        if any(area.low is not None for area in task.areas)
        else "",
        keys=keys,
        others=f" Small grey marks are {len(others)} other groups." if others else "",
        thinned=f" {hidden:,} of {len(rows):,} rows {'is' if hidden == 1 else 'are'} left out of the picture."
        if hidden
        else "",
        beyond=f" <small>({outside:,} {plural('point', outside)} outside this view)</small>"
        if outside
        else "",
        bars="Bars are intervals, thin ticks single seeds. "
        if any(area.low is not None for area in task.areas)
        else "These data give no intervals. ",
        listed=f"The largest {_LISTED} of {len(task.areas)}." if len(task.areas) > _LISTED else "",
        areas=area_table(task, looks, most),
        differences=difference_table(task, most),
        notes="".join(f"<li>{escape(note)}</li>" for note in task.notes),
    )
    return Part(html, plots)


def _brief(task: TaskRanking, looks: dict[str, Style]) -> str:
    certainty = "cannot say" if task.certainty == "unknown" else task.certainty
    return (
        f"<span>Largest area:</span> {symbol(looks[task.best.strategy])} <strong>{escape(task.best.strategy)}</strong> "
        f'{task.best.area:.3f} <span class="badge {certainty.replace(" ", "-")}">{certainty}</span>'
    )


def _overview(analysis: Analysis, drawings: list[Drawing], looks: dict[str, Style]) -> Part:
    """All tasks: small frontiers, winners, ranks."""
    pictures = []
    for number, (task, drawing) in enumerate(zip(analysis.tasks, drawings, strict=True)):
        shown = {area.strategy: looks[area.strategy] for area in task.areas}
        best = f"{task.best.strategy} {task.best.area:.3f}"
        described = f"Frontiers on {task.task}; largest area {best}"
        pictures.append(Small(f"#task-{number}", task.task, best, drawing, shown, described))
    many = small_multiples(pictures)
    across_all = () if analysis.across is None else (analysis.across,)
    coloured = [group for group in by_rank(analysis.tasks, across_all) if _stands_out(group, looks)]
    if analysis.across is None:
        across = "<p>No group is in every task, so there are no means over tasks.</p>"
    else:
        across = across_html(analysis.across, looks, most=_RANKED)
        ranked = analysis.across.ranked
        if len(ranked) > _RANKED:
            across += f'<p class="small">The best {_RANKED} of {len(ranked)} groups that every task has.</p>'
    html = (
        '<section class="card" aria-labelledby="overview"><h2 id="overview">Overview</h2>'
        f"{across}<h3>Task by task</h3>{legend(coloured, looks)}"
        f"{many.html}{task_table(analysis.tasks, looks)}</section>"
    )
    return Part(html, many.plots)
