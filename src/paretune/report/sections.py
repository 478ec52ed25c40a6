"""The sections of a report about one condition, and about one attack at several epsilons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from string import Template

import pandas as pd

from paretune.frontiers.budget import BudgetCurve
from paretune.frontiers.verdict import AreaEstimate, Condition
from paretune.report.drawing import Drawing, Style
from paretune.report.figures import describe
from paretune.report.labels import area_text, origin_text
from paretune.report.marks import legend, symbol
from paretune.report.robustness import RobustnessCurve
from paretune.report.shell import text_of
from paretune.report.specs.areas import forest_spec
from paretune.report.specs.costs import cost_spec
from paretune.report.specs.curves import budget_spec, epsilon_spec
from paretune.report.specs.frontier import ON_PAGE, Spec, frontier_spec
from paretune.report.specs.pairs import matrix_spec
from paretune.report.tables import SEEDS_LISTED, area_table, pair_table, table
from paretune.runs.naming import attack_text, threat_text

_LISTED = 40  # strategies or sentences; of more, the rest are counted
_CERTAINTY = {
    "clear": "every other strategy is told apart",
    "tie": "several strategies may be best, or are less than the margin behind",
    "equivalent": "all differ by less than the margin",
    "cannot tell": "these data do not decide",
    "alone": "nothing to compare with",
}


@dataclass(frozen=True)
class Part:
    """A piece of the page: trusted HTML, and the plots in it by their ids."""

    html: str
    plots: dict[str, Spec]


def condition_section(
    number: int,
    condition: Condition,
    whole: Condition,
    drawing: Drawing,
    rows: pd.DataFrame,
    curves: Sequence[BudgetCurve],
    looks: dict[str, Style],
    *,
    use: str,
    folded: bool,
) -> Part:
    """One condition: what to use and why, then every picture and table of it.

    Args:
        number: of the condition; ids end with it.
        condition: whose numbers to show, of the strategies that are shown.
        whole: what sentences are about: all strategies.
        drawing: of its frontiers.
        rows: its points.
        curves: expected areas against the budget.
        looks: of its strategies, by rank.
        use: the strategy to use, as HTML.
        folded: whether the section starts folded to its heading.
    """
    ranked = [estimate.strategy for estimate in condition.areas]
    several, seeds = len(ranked) > 1, any(len(area.seeds) > 1 for area in condition.areas)
    ticks = seeds and max(len(area.seeds) for area in condition.areas) <= SEEDS_LISTED
    plots = {
        f"frontier-{number}": frontier_spec(drawing, looks, ON_PAGE, description=describe(rows, looks)),
        f"forest-{number}": forest_spec(
            condition.areas if ticks else _without_seeds(condition), looks, ON_PAGE
        ),
    }
    figures = []
    if several:
        plots[f"matrix-{number}"] = matrix_spec(condition, looks, ON_PAGE)
        figures.append(
            figure(
                f"matrix-{number}",
                "Pairs.",
                f"The chance that the row’s area is ahead of the column’s by more than {condition.margin:g}, and the "
                "adjusted p of a difference. ▲ told apart and ahead, ▼ behind, by the margin or more; △ and ▽ by less; "
                "≈ equivalent.",
            )
        )
        plots[f"cost-{number}"] = cost_spec(condition, looks, ON_PAGE)
        figures.append(figure(f"cost-{number}", "What they cost.", "Up and to the left is better."))
        plots[f"time-{number}"] = cost_spec(condition, looks, ON_PAGE, "train_seconds")
        figures.append(figure(f"time-{number}", "What they take.", "Up and to the left is better."))
    if max(curve.points[-1] for curve in curves) > 2:
        plots[f"budget-{number}"] = budget_spec(curves, looks, ON_PAGE)
        figures.append(
            figure(
                f"budget-{number}",
                "Would more search change the order?",
                "The area to expect from fewer evaluated checkpoints, on average over the choices of them.",
            )
        )
    outside, hidden = drawing.outside, len(rows) - len(drawing.points)
    beyond = f" <small>({outside} {plural('point', outside)} outside this view)</small>" if outside else ""
    judged = whole.judged
    sentence, _, covers = judged.verdict.partition(". ")
    needed = judged.recommendation.would_change
    changes = "".join(f"<li>{escape(change)}</li>" for change in needed[:_LISTED])
    changes += f"<li>… and {len(needed) - _LISTED} more.</li>" if len(needed) > _LISTED else ""
    rest = len(whole.areas) - len(ranked)
    notes = "".join(f"<li>{escape(note)}</li>" for note in condition.notes)
    floors = [
        f" · {name} at least {floor:.0%}"
        for name, floor in (
            ("clean", condition.settings.min_clean),
            ("robust", condition.settings.min_robust),
        )
        if floor
    ]
    html = Template(text_of("section.html")).substitute(
        number=number,
        open="" if folded else "open",
        heading=f"{escape(condition.task)} <span>{escape(threat_text(condition.threat, condition.epsilon))}</span>",
        brief=f'<p class="brief">{use}</p>' if folded else "",
        attack=escape(attack_text(condition.attack)),
        examples=f"{condition.examples:,}",
        examples_select=f"{condition.examples_select:,}",
        groups="" if condition.groups is None else f" · resampled by {condition.groups:,} groups",
        floors="".join(floors),
        use=use if several else "",
        verdict=escape(sentence + "."),
        covers=escape(covers),
        evidence=_evidence(judged) if several else "",
        origin=origin_text(condition.settings.start, drawing.clean, drawing.robust),
        level=f"{100 * condition.level:g}%",
        mean=", mean over seeds" if seeds else "",
        ticks=", thin ticks single seeds" if ticks else "",
        legend=legend(
            ranked,
            looks,
            {area.strategy: area_text(area.area, area.low, area.high) for area in condition.areas},
        ),
        beyond=beyond,
        thinned=f" {hidden:,} of {len(rows):,} points {'is' if hidden == 1 else 'are'} left out of the picture."
        if hidden
        else "",
        figures="\n".join(figures),
        several_hidden="" if several else "hidden",
        areas=area_table(condition, looks, judged.recommended.strategy)
        + (
            f'<p class="small">… and {rest} {plural("strategy", rest)} with smaller areas.</p>'
            if rest
            else ""
        ),
        pairs=pair_table(condition),
        changes=f"<h4>What would change this</h4><ul>{changes}</ul>" if changes else "",
        notes=f"<h4>Notes</h4><ul>{notes}</ul>" if notes else "",
    )
    return Part(html, plots)


def epsilon_section(
    number: int, curves: Sequence[RobustnessCurve], looks: dict[str, Style], *, folded: bool
) -> Part:
    """One attack at several epsilons: accuracy against epsilon, and the expected robustness of each strategy."""
    first = curves[0]
    ranked = sorted(curves, key=lambda curve: (-curve.expected, curve.strategy))
    shown = {curve.strategy: looks[curve.strategy] for curve in ranked}
    rows = [
        (
            f"{symbol(looks[curve.strategy])}<span>{escape(curve.strategy)}</span>",
            f"<strong>{curve.expected:.3f}</strong>",
            *(f"{accuracy:.1%}" for accuracy in curve.accuracies),
        )
        for curve in ranked
    ]
    radii = ["clean", *(threat_text(first.threat, epsilon) for epsilon in first.epsilons[1:])]
    numbers = table("Expected robustness", ["Strategy", "Expected robustness", *radii], rows)
    text = (
        "Of each seed the checkpoint with the best mean accuracy over epsilon on the select split, measured on the "
        "report split; the shade holds all seeds. Beside each name: its expected robustness, the mean height of its line."
    )
    picture = figure(f"epsilon-{number}", "Accuracy against epsilon.", text)
    html = (
        f'<section class="card" aria-labelledby="epsilons-{number}"><details class="fold" {"" if folded else "open"}>'
        f'<summary><h2 id="epsilons-{number}">{escape(first.task)} <span>over epsilon</span></h2></summary>'
        f'<p class="small">Attack <code>{escape(first.attack)}</code></p>'
        f"{legend(shown, looks, {curve.strategy: f'{curve.expected:.3f}' for curve in ranked})}{picture}"
        f"<h3>Numbers</h3>{numbers}</details></section>"
    )
    return Part(html, {f"epsilon-{number}": epsilon_spec(ranked, shown, ON_PAGE)})


def _without_seeds(condition: Condition) -> list[AreaEstimate]:
    return [replace(area, seeds=area.seeds[:1], per_seed=area.per_seed[:1]) for area in condition.areas]


def use_text(condition: Condition, looks: dict[str, Style], partial: bool) -> str:
    """The strategy to use and how sure that is, as HTML; it recommends only what finished runs decide."""
    judged = condition.judged
    name, certainty = judged.recommended.strategy, judged.certainty
    kind = certainty.replace(" ", "-")
    advice = "Cannot tell; cheapest:" if certainty == "cannot tell" else "Use"
    return (
        f"<span>{'So far:' if partial else advice}</span> {symbol(looks[name])} <strong>{escape(name)}</strong> "
        f'<span class="badge {kind}" title="{_CERTAINTY[certainty]}">{certainty}</span>'
    )


def plural(noun: str, count: int) -> str:
    """The noun, as the count wants it."""
    if count == 1:
        return noun
    return noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"


def _evidence(condition: Condition) -> str:
    """Who may be best, in one sentence."""
    among = condition.confidence_set
    if len(among) > _LISTED:
        among = (*among[:_LISTED], f"{len(among) - _LISTED} others")
    names = ", ".join(among[:-1]) + (" or " if len(among) > 1 else "") + among[-1]
    return (
        f"<p>{_CERTAINTY[condition.certainty].capitalize()}. With {100 * condition.level:g}% confidence, the largest true "
        f"{condition.quantity} is that of {escape(names)}.</p>"
    )


def figure(place: str, title: str, text: str) -> str:
    """A plot by the id of its element, with its caption."""
    return (
        f'<figure><figcaption>{escape(title)} <span class="small">{escape(text)}</span></figcaption>'
        f'<div class="chart" id="{place}"></div></figure>'
    )
