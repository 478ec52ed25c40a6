"""The section of a report about images unlike those of training: what a strategy keeps there, and the third axis."""

from collections.abc import Sequence
from html import escape

import pandas as pd

from paretune.frontiers.elsewhere import Elsewhere
from paretune.frontiers.verdict import Condition
from paretune.report.classes import with_interval
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.pictures import card
from paretune.report.sections import Part, figure
from paretune.report.specs.corruptions import corruption_spec
from paretune.report.specs.frontier import ON_PAGE, Spec
from paretune.report.tables import table
from paretune.report.third_axis import third_axis
from paretune.runs.naming import attack_text, threat_text


def elsewhere_section(
    conditions: Sequence[Condition], rows: Sequence[pd.DataFrame], looks: dict[str, Style], *, folded: bool
) -> Part:
    """Clean, robust and shifted accuracy together; accuracy elsewhere and what is lost of it, by place and by corruption.

    Args:
        conditions: what the report is about.
        rows: the points of each, as :func:`paretune.report.drawing.as_points` gives them.
        looks: of the strategies.
        folded: whether the section starts folded to its heading.
    """
    parts: list[Part] = []
    clean_shown = set()
    for number, (condition, points) in enumerate(zip(conditions, rows, strict=True)):
        under = f"{attack_text(condition.attack)}, {threat_text(condition.threat, condition.epsilon)}"
        for accuracy in ("clean", "robust"):
            results = [result for result in condition.elsewhere if result.accuracy == accuracy]
            if not results or (accuracy == "clean" and condition.task in clean_shown):
                continue  # clean accuracy is one under all attacks
            clean_shown.add(condition.task)
            title = f"{condition.task}, {'clean' if accuracy == 'clean' else f'robust, {under}'}"
            parts.append(_table(title, condition, results, looks))
            if results[0].corruptions:
                parts.append(_corruptions(f"corruptions-{accuracy}-{number}", results, looks))
        title = f"{condition.task}, clean, robust and shifted, {under}"
        parts.append(third_axis(number, title, condition, points, looks))
    intro = (
        '<p class="small">What is left of accuracy on images unlike those that were trained on: other domains, changed '
        "images, or other sets with a name, which nothing was trained on or chosen by. The numbers of images are in "
        "brackets; of all together, each image counts once. The drop is in percentage points. Of each seed, the checkpoint "
        "with the best accuracy of that kind on the select split counts; seeds are averaged. "
        f"Intervals ({100 * conditions[0].level:g}%) are of one strategy each and do not compare two.</p>"
    )
    html = intro + "".join(part.html for part in parts)
    plots = {place: plot for part in parts for place, plot in part.plots.items()}
    return Part(card("elsewhere", "Out of distribution", html, folded=folded).html, plots)


def _table(title: str, condition: Condition, results: Sequence[Elsewhere], looks: dict[str, Style]) -> Part:
    first = results[0]
    corrupted = [f"{len(first.corruptions)} corruptions"] if first.corruptions else []
    places = [*corrupted, *(f"{name} ({first.examples[name]:,})" for name in first.others)]
    together = [f"Elsewhere ({sum(first.examples.values()):,})"] if len(places) > 1 else []
    rows = [
        (
            f"{symbol(looks[result.strategy])}<span>{escape(result.strategy)}</span>",
            with_interval(*result.report),
            *([f"<strong>{with_interval(*result.pooled)}</strong>"] if together else []),
            _points(*result.drop),
            *([] if result.corrupted is None else [with_interval(*result.corrupted)]),
            *(with_interval(*result.places[name]) for name in result.others),
        )
        for result in results
    ]
    names = [result.strategy for result in results]
    recommended = condition.judged.recommended.strategy
    told = results[names.index(recommended) if recommended in names else 0]
    points = f"{abs(100 * told.drop[0]):.1f} points {'fewer' if told.drop[0] >= 0 else 'more'}"
    text = (
        f"{told.strategy} is right on {told.pooled[0]:.1%} of the images elsewhere"
        f"{' under attack' if told.accuracy == 'robust' else ''}, {points} than on what it was trained on."
    )
    if missing := [area.strategy for area in condition.areas if area.strategy not in names]:
        text += f" Not measured on these images: {', '.join(missing)}."
    shown = table(title, ("Strategy", "Trained on", *together, "Drop", *places), rows)
    return Part(f"<h3>{escape(title)}</h3><p>{escape(text)}</p>{shown}", {})


def _corruptions(place: str, results: Sequence[Elsewhere], looks: dict[str, Style]) -> Part:
    """The heat map, and beside it each strategy by severity and its worst corruption."""
    corruptions = results[0].corruptions
    severities = sorted({severity for _, severity in corruptions.values()})
    rows = []
    for result in results:
        accuracies = {name: result.places[name][0] for name in corruptions}
        by_severity = [
            _mean(accuracies, [n for n in corruptions if corruptions[n][1] == s]) for s in severities
        ]
        by_kind = {
            kind: _mean(accuracies, [name for name in corruptions if corruptions[name][0] == kind])
            for kind, _ in corruptions.values()
        }
        worst = min(by_kind, key=lambda kind: by_kind[kind])
        rows.append(
            (
                f"{symbol(looks[result.strategy])}<span>{escape(result.strategy)}</span>",
                *(f"{accuracy:.1%}" for accuracy in by_severity),
                "" if result.corrupted is None else f"<strong>{with_interval(*result.corrupted)}</strong>",
                f"{escape(worst.replace('_', ' '))}: {by_kind[worst]:.1%}",
            )
        )
    values = [result.places[name][0] for result in results for name in corruptions]
    text = (
        ("Five" if len(severities) == 5 else f"{len(severities)}")
        + " cells of a strategy are the severities, mildest on the left; the fuller a cell, the more images are right, from "
    )
    text += f"{min(values):.0%} to {max(values):.0%}. Seeds are averaged."
    spec: Spec = corruption_spec(results, looks, ON_PAGE)
    head = ("Strategy", *(f"Severity {severity}" for severity in severities), "All", "Worst corruption")
    numbers = table("Accuracy by severity, mean over corruptions", head, rows)
    return Part(figure(place, "Corruptions.", text) + numbers, {place: spec})


def _mean(accuracies: dict[str, float], names: Sequence[str]) -> float:
    return sum(accuracies[name] for name in names) / len(names)


def _points(gap: float, low: float, high: float) -> str:
    text, *ends = (f"{100 * value:.1f}".replace("-", "−") for value in (gap, low, high))
    return f'{text} <span class="small">{ends[0]} – {ends[1]}</span>'
