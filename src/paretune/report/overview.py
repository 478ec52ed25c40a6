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
from paretune.report.tables import p_text, signed, standing, table
from paretune.runs.naming import condition_names, threat_text


def overview_section(
    comparison: Comparison, drawings: Sequence[Drawing], partial: Sequence[bool], looks: dict[str, Style]
) -> Part:
    """Small frontiers beside each other, one row per condition, and the strategies over all tasks.

    Args:
        comparison: of several conditions.
        drawings: one for each condition.
        partial: for each condition, whether some of its runs are not finished.
        looks: of all strategies.
    """
    conditions = comparison.conditions
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
    head = ("Condition", "Recommendation", "Largest area", "Interval", "May be best")
    rows = [
        (
            f'<a href="#condition-{number}">{escape(name)}</a>',
            use_text(condition, looks, partial[number]),
            f"{escape(condition.best.strategy)} {condition.best.area:.3f}",
            f"{condition.best.low:.3f} – {condition.best.high:.3f}",
            escape(", ".join(condition.tied)),
        )
        for number, (name, condition) in enumerate(zip(names, conditions, strict=True))
    ]
    pictures = []
    for number, (name, condition, drawing) in enumerate(zip(names, conditions, drawings, strict=True)):
        shown = {area.strategy: looks[area.strategy] for area in condition.areas}
        best = f"{condition.best.strategy} {condition.best.area:.3f}"
        described = f"Frontiers of {', '.join(shown)} on {name}; largest area {best}"
        pictures.append(Small(f"#condition-{number}", name, f"Largest: {best}", drawing, shown, described))
    many = small_multiples(pictures)
    across = _across(comparison)
    told = "".join(across_html(ranking, looks, several=len(across) > 1) for ranking in across)
    html = (
        '<section class="card" aria-labelledby="overview"><h2 id="overview">Overview</h2>'
        f"{told}{legend(by_rank(conditions, across), looks)}"
        f"{many.html}<h3>Conditions</h3>{table('Conditions', head, rows)}</section>"
    )
    return Part(html, many.plots)


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


def _across(comparison: Comparison) -> Sequence[AcrossTasks]:
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
    won = {
        name: [winner.task for winner in across.winners if name in winner.sharing] for name in across.ranked
    }
    tied = {*across.tied}
    ranks = [
        (
            f"{symbol(looks[name])}<span>{escape(name)}</span>",
            f"<strong>{area:.3f}</strong>",
            f"{rank:.2f}",
            "yes" if name in tied else "no",
            str(len(won[name])),
            escape(", ".join(won[name])),
        )
        for name, area, rank in zip(
            across.ranked[:most], across.mean_areas[:most], across.mean_ranks[:most], strict=True
        )
    ]
    few = most is None or len(across.ranked) <= most
    places = {name: place for place, name in enumerate(across.ranked)}
    pairs = [
        (
            f"<span>{escape(pair.strategy_a)} − {escape(pair.strategy_b)}</span>",
            f"{pair.wins} : {pair.losses}",
            signed(pair.mean_difference),
            "–" if pair.low is None or pair.high is None else f"{signed(pair.low)} to {signed(pair.high)}",
            "–" if pair.here is None else f"{signed(pair.here[0])} to {signed(pair.here[1])}",
            "–" if pair.p_value is None else p_text(pair.p_value),
            standing(across.decision, places[pair.strategy_a], places[pair.strategy_b], across.margin),
        )
        for pair in across.pairs
        if few or pair.strategy_a == across.ranked[0]
    ]
    left_out = (
        f" Not in every task, and left out: {escape(', '.join(across.left_out))}." if across.left_out else ""
    )
    head = (
        "Strategy",
        "Mean area",
        "Mean rank",
        "May be best in general",
        "Tasks with the largest area",
        "Which",
    )
    level = f"{100 * across.level:g}% interval"
    pair_head = (
        "Pair",
        "Tasks ahead : behind",
        "Mean difference",
        f"{level}, tasks like these",
        f"{level}, these tasks",
        "p, adjusted",
        "",
    )
    return (
        f"<h3>Across {len(across.tasks)} tasks{threat}</h3>"
        f'<div class="verdict"><p>{escape(across.verdict)} <span class="small">{left_out}</span></p></div>'
        f"{table('Mean areas and ranks', head, ranks)}"
        + (
            f"<details><summary>Pairs over the tasks</summary>{table('Pairs over the tasks', pair_head, pairs)}</details>"
            if pairs
            else ""
        )
    )
