"""The numbers of an analysis as HTML tables."""

from collections.abc import Iterable
from html import escape

from paretune.frontiers.deciding import listed
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.tables import p_text, standing, table

_SEEDS = 10  # areas of single seeds that are shown
_FOLD = 12  # rows of differences above which they are folded away


def area_table(task: TaskRanking, looks: dict[str, Style], most: int | None = None) -> str:
    """One row per group, best first; at most ``most``."""
    head = (
        "Group",
        "Rank",
        "Area",
        f"{100 * task.level:g}% interval",
        "Points counted",
        "Points",
        "Per seed",
    )
    rows = (
        (
            _named(estimate.strategy, looks),
            f"{rank:g}",
            f"<strong>{estimate.area:.3f}</strong>",
            _interval(estimate.low, estimate.high),
            str(estimate.k),
            " – ".join(f"{size:,}" for size in sorted({*points})),
            " ".join(f"{area:.3f}" for area in estimate.per_seed[:_SEEDS])
            + (" …" if len(estimate.per_seed) > _SEEDS else ""),
        )
        for rank, points, estimate in [*zip(task.ranks, task.points, task.areas, strict=True)][:most]
    )
    more = f'<p class="small">The largest {most} of {len(task.areas)}; areas.csv has all.</p>'
    return table("Areas under the frontiers", head, rows) + (more if most and most < len(task.areas) else "")


def difference_table(task: TaskRanking, most: int | None = None) -> str:
    """One row per group behind the best, at most ``most``; nothing where no difference could be tested."""
    if not any(d.p_value is not None for d in task.to_best):
        return ""
    places = {area.strategy: place for place, area in enumerate(task.areas)}
    head = ("Behind the largest area", "Difference", f"{100 * task.level:g}% interval", "p, adjusted", "")
    rows: Iterable[tuple[str, ...]] = (
        (
            f"<span>{escape(d.strategy_b)}</span>",
            f"<strong>{d.difference:.3f}</strong>",
            _interval(d.low, d.high),
            "–" if d.p_value is None else p_text(d.p_value),
            standing(task.decision, 0, places[d.strategy_b], task.margin),
        )
        for d in task.to_best[:most]
    )
    differences = table(f"Differences to {task.best.strategy}", head, rows)
    if len(task.to_best[:most]) <= _FOLD:
        return differences
    return f"<details><summary>Differences to {escape(task.best.strategy)}</summary>{differences}</details>"


def task_table(tasks: Iterable[TaskRanking], looks: dict[str, Style]) -> str:
    """One row per task."""
    head = ("Task", "Largest area", "Area", "Interval", "How certain", "May be best")
    rows = (
        (
            f'<a href="#task-{number}">{escape(task.task)}</a>',
            _named(task.best.strategy, looks),
            f"{task.best.area:.3f}",
            _interval(task.best.low, task.best.high),
            "cannot say" if task.certainty == "unknown" else task.certainty,
            escape(listed(task.tied)),
        )
        for number, task in enumerate(tasks)
    )
    return table("Tasks", head, rows)


def _named(group: str, looks: dict[str, Style]) -> str:
    return f"{symbol(looks[group])}<span>{escape(group)}</span>"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} – {high:.3f}".replace("-", "−")
