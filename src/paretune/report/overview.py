"""The first section of a report on several conditions: all of them at a glance, and what holds across tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from paretune.frontiers.across import AcrossTasks, across_tasks
from paretune.frontiers.ranking import Area, Gap, Ranking
from paretune.frontiers.verdict import Comparison
from paretune.report.drawing import Drawing, Style
from paretune.report.marks import legend, symbol
from paretune.report.sections import Part, use_text
from paretune.report.specs.frontier import ON_PAGE
from paretune.report.specs.overview import overview_spec
from paretune.report.summary import LISTED, STRATEGIES, Shown
from paretune.report.tables import rank_numbers, rank_pair_numbers, table
from paretune.runs.naming import condition_names, threat_text

RANKED = 20  # strategies in a ranking over tasks of a page that does not show all


def overview_section(
    comparison: Comparison,
    shown: Shown,
    drawings: Sequence[Drawing],
    partial: Sequence[bool],
    looks: dict[str, Style],
) -> Part:
    """Small frontiers beside each other, one row per condition, and the strategies over all tasks.

    Args:
        comparison: of several conditions.
        shown: those that have sections.
        drawings: one for each of these.
        partial: for each condition, whether some of its runs are not finished.
        looks: of all strategies.
    """
    conditions = comparison.conditions
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
    head = ("Condition", "Recommendation", "Largest area", "Interval", "May be best")
    rows = [
        (
            f'<a href="#condition-{number}">{escape(name)}</a>' if number in shown.numbers else escape(name),
            use_text(condition, looks, partial[number]),
            f"{escape(condition.best.strategy)} {condition.best.area:.3f}",
            f"{condition.best.low:.3f} – {condition.best.high:.3f}",
            escape(_listed(condition.judged.tied)),
        )
        for number, (name, condition) in enumerate(zip(names[:LISTED], conditions, strict=False))
    ]
    more = len(conditions) - len(rows)
    pictures = []
    for number, condition, drawing in zip(shown.numbers, shown.conditions, drawings, strict=True):
        drawn = {area.strategy: looks[area.strategy] for area in condition.areas}
        best = f"{condition.best.strategy} {condition.best.area:.3f}"
        described = f"Frontiers of {', '.join(drawn)} on {names[number]}; largest area {best}"
        small = Small(f"#condition-{number}", names[number], f"Largest: {best}", drawing, drawn, described)
        pictures.append(small)
    many = small_multiples(pictures)
    across = over_tasks(comparison)
    most = None if shown.whole else RANKED
    told = "".join(across_html(ranking, looks, several=len(across) > 1, most=most) for ranking in across)
    ranked = by_rank(conditions, across)
    strategies = (
        "" if len(ranked) <= STRATEGIES else f" The first {STRATEGIES} of {len(ranked)} strategies by rank:"
    )
    if most is not None and any(len(ranking.ranked) > most for ranking in across):
        told += f'<p class="small">The {most} strategies with the largest mean areas, and pairs with the first.</p>'
    html = (
        '<section class="card" aria-labelledby="overview"><h2 id="overview">Overview</h2>'
        f"{told}{strategies}{legend(ranked[:STRATEGIES], looks)}"
        f"{many.html}<h3>Conditions</h3>{table('Conditions', head, rows)}"
        f"{f'<p>… and {more:,} more.</p>' if more else ''}</section>"
    )
    return Part(html, many.plots)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(
        names if len(names) <= STRATEGIES else [*names[:STRATEGIES], f"{len(names) - STRATEGIES} others"]
    )


def by_rank(tasks: Sequence[Ranking[Area, Gap]], across: Sequence[AcrossTasks]) -> list[str]:
    """All strategies: first those of the one ranking over tasks, if there is one, then the others by their mean place.

    Where a strategy does not take part, its place is behind all that do.
    """
    places = [{area.strategy: place for place, area in enumerate(task.areas)} for task in tasks]
    names = {*chain.from_iterable(places)}
    total = {
        name: sum(of_task.get(name, len(of_task)) / len(of_task) for of_task in places) for name in names
    }
    others = sorted(names, key=lambda name: (total[name], name))
    return [*dict.fromkeys([*(across[0].ranked if len(across) == 1 else ()), *others])]


@dataclass(frozen=True)
class Small:
    """One of many small frontiers.

    Args:
        link: to the section with the large one.
        name: what it is of.
        caption: beside the name.
        drawing: the frontiers.
        looks: of the strategies in it.
        description: for those who do not see it.
    """

    link: str
    name: str
    caption: str
    drawing: Drawing
    looks: dict[str, Style]
    description: str


def small_multiples(pictures: Sequence[Small]) -> Part:
    """Small frontiers beside each other."""
    figures, plots = [], {}
    for number, picture in enumerate(pictures):
        plots[f"overview-{number}"] = overview_spec(
            picture.drawing, picture.looks, ON_PAGE, description=picture.description
        )
        figures.append(
            f'<figure><figcaption><a href="{picture.link}">{escape(picture.name)}</a> '
            f'<span class="small">{escape(picture.caption)}</span></figcaption>'
            f'<div class="chart" id="overview-{number}"></div></figure>'
        )
    html = (
        '<p class="small">Robust accuracy above clean accuracy, each picture in the range of its own frontiers; one '
        "staircase for each training seed.</p>"
        f'<div class="many">{"".join(figures)}</div>'
    )
    return Part(html, plots)


def over_tasks(comparison: Comparison) -> Sequence[AcrossTasks]:
    """What holds over all tasks; nothing where no two share an attack and a strategy."""
    try:
        return across_tasks(comparison)
    except ValueError:
        return ()


def across_html(
    across: AcrossTasks, looks: dict[str, Style], *, several: bool = False, most: int | None = None
) -> str:
    """The verdict over tasks, mean areas and ranks, and the pairs folded behind.

    Args:
        across: what to tell.
        looks: of all strategies.
        several: whether the threat must be named, because there is more than one.
        most: strategies that are shown; of more, only the pairs with the first.
    """
    threat = f" <span>{escape(threat_text(across.threat, across.epsilon))}</span>" if several else ""
    ranks = rank_numbers(across, most)
    pairs = rank_pair_numbers(across, most)
    rank_rows = [
        (
            f"{symbol(looks[name])}<span>{escape(name)}</span>",
            f"<strong>{area}</strong>",
            *map(escape, others),
        )
        for name, area, *others in ranks.rows
    ]
    pair_rows = [(f"<span>{escape(pair)}</span>", *map(escape, others)) for pair, *others in pairs.rows]
    left_out = (
        f" Not in every task, and left out: {escape(', '.join(across.left_out))}." if across.left_out else ""
    )
    return (
        f"<h3>Across {len(across.tasks)} tasks{threat}</h3>"
        f'<div class="verdict"><p>{escape(across.verdict)} <span class="small">{left_out}</span></p></div>'
        f"{table(ranks.name, ranks.head, rank_rows)}"
        + (
            f"<details><summary>{pairs.name}</summary>{table(pairs.name, pairs.head, pair_rows)}</details>"
            if pair_rows
            else ""
        )
    )
