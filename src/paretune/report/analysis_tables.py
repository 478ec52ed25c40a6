"""The numbers of an analysis as tables: plain text, and HTML made from it."""

from collections.abc import Iterable
from html import escape

from paretune.frontiers.deciding import listed
from paretune.frontiers.ranking import Area
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.tables import Numbers, p_text, standing, table

_SEEDS = 10  # areas of single seeds that are shown
_FOLD = 12  # rows of differences above which they are folded away


def group_numbers(task: TaskRanking, most: int | None = None) -> Numbers:
    """One row per group, best first; at most ``most``."""
    volumes = task.volume_of
    head = (
        "Group",
        "Rank",
        "Area",
        f"{100 * task.level:g}% interval",
        *(("Volume", f"{100 * task.level:g}% interval") if volumes else ()),
        "Points counted",
        "Points",
        "Per seed",
    )
    rows = [
        (
            estimate.strategy,
            f"{rank:g}",
            f"{estimate.area:.3f}",
            _interval(estimate.low, estimate.high),
            *_volume(volumes.get(estimate.strategy)),
            str(estimate.k),
            " – ".join(f"{size:,}" for size in sorted({*points})),
            " ".join(f"{area:.3f}" for area in estimate.per_seed[:_SEEDS])
            + (" …" if len(estimate.per_seed) > _SEEDS else ""),
        )
        for rank, points, estimate in [*zip(task.ranks, task.points, task.areas, strict=True)][:most]
    ]
    return Numbers("Areas under the frontiers", head, rows)


def behind_numbers(task: TaskRanking, most: int | None = None) -> Numbers:
    """One row per group behind the best, at most ``most``; no rows where no difference could be tested."""
    name = f"Differences to {task.best.strategy}"
    head = ("Behind the largest area", "Difference", f"{100 * task.level:g}% interval", "p, adjusted", "")
    if not any(d.p_value is not None for d in task.to_best):
        return Numbers(name, head, [])
    places = {area.strategy: place for place, area in enumerate(task.areas)}
    rows = [
        (
            d.strategy_b,
            f"{d.difference:.3f}",
            _interval(d.low, d.high),
            "–" if d.p_value is None else p_text(d.p_value),
            standing(task.decision, 0, places[d.strategy_b], task.margin),
        )
        for d in task.to_best[:most]
    ]
    return Numbers(name, head, rows)


def area_table(task: TaskRanking, looks: dict[str, Style], most: int | None = None) -> str:
    """The areas as HTML, with the marks of the groups; at most ``most``."""
    numbers = group_numbers(task, most)
    rows = [
        (_named(group, looks), rank, f"<strong>{area}</strong>", *map(escape, others))
        for group, rank, area, *others in numbers.rows
    ]
    more = f'<p class="small">The largest {most} of {len(task.areas)}; areas.csv has all.</p>'
    areas = table(numbers.name, numbers.head, rows)
    return areas + (more if most and most < len(task.areas) else "")


def difference_table(task: TaskRanking, most: int | None = None) -> str:
    """The differences as HTML, folded where they are many; nothing where none could be tested."""
    numbers = behind_numbers(task, most)
    if not numbers.rows:
        return ""
    rows = [
        (f"<span>{escape(group)}</span>", f"<strong>{gap}</strong>", *map(escape, others))
        for group, gap, *others in numbers.rows
    ]
    differences = table(numbers.name, numbers.head, rows)
    if len(rows) <= _FOLD:
        return differences
    return f"<details><summary>{escape(numbers.name)}</summary>{differences}</details>"


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


def _volume(volume: Area | None) -> tuple[str, ...]:
    if volume is None:
        return ()
    return f"{volume.area:.3f}", _interval(volume.low, volume.high)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} – {high:.3f}".replace("-", "−")
