"""The section of a report about other domains and the like: how much of its accuracy a strategy keeps there."""

from collections.abc import Sequence
from html import escape

from paretune.frontiers.elsewhere import Elsewhere
from paretune.frontiers.verdict import Condition
from paretune.report.classes import with_interval
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.pictures import card
from paretune.report.sections import Part
from paretune.report.tables import table
from paretune.runs.naming import attack_text, threat_text


def elsewhere_section(conditions: Sequence[Condition], looks: dict[str, Style], *, folded: bool) -> Part:
    """Accuracy on what was trained on, elsewhere, and what is lost between the two.

    Args:
        conditions: what the report is about.
        looks: of the strategies.
        folded: whether the section starts folded to its heading.
    """
    parts, clean_shown = [], set()
    for condition in conditions:
        for accuracy in ("clean", "robust"):
            results = [result for result in condition.elsewhere if result.accuracy == accuracy]
            if not results or (accuracy == "clean" and condition.task in clean_shown):
                continue  # clean accuracy is one under all attacks
            under = (
                "clean"
                if accuracy == "clean"
                else f"robust, {attack_text(condition.attack)}, {threat_text(condition.threat, condition.epsilon)}"
            )
            clean_shown.add(condition.task)
            parts.append(_table(f"{condition.task}, {under}", condition, results, looks))
    intro = (
        '<p class="small">What is left of accuracy on images unlike those that were trained on: other domains, or other '
        "sets with a name, which nothing was trained on or chosen by. The numbers of images are in brackets; of all "
        "together, each image counts once. The drop is in percentage points. Of each seed, the checkpoint with the best "
        "accuracy of that kind on the select split counts; seeds are averaged. "
        f"Intervals ({100 * conditions[0].level:g}%) are of one strategy each and do not compare two.</p>"
    )
    return card("elsewhere", "Elsewhere", intro + "".join(parts), folded=folded)


def _table(title: str, condition: Condition, results: Sequence[Elsewhere], looks: dict[str, Style]) -> str:
    places = [f"{name} ({count:,})" for name, count in results[0].examples.items()]
    together = [f"Elsewhere ({sum(results[0].examples.values()):,})"] if len(places) > 1 else []
    rows = [
        (
            f"{symbol(looks[result.strategy])}<span>{escape(result.strategy)}</span>",
            with_interval(*result.report),
            *([f"<strong>{with_interval(*result.pooled)}</strong>"] if together else []),
            _points(*result.drop),
            *(with_interval(*result.places[name]) for name in results[0].examples),
        )
        for result in results
    ]
    names = [result.strategy for result in results]
    told = results[
        names.index(condition.recommended.strategy) if condition.recommended.strategy in names else 0
    ]
    points = f"{abs(100 * told.drop[0]):.1f} points {'fewer' if told.drop[0] >= 0 else 'more'}"
    text = (
        f"{told.strategy} is right on {told.pooled[0]:.1%} of the images elsewhere"
        f"{' under attack' if told.accuracy == 'robust' else ''}, {points} than on what it was trained on."
    )
    if missing := [area.strategy for area in condition.areas if area.strategy not in names]:
        text += f" Not measured on these images: {', '.join(missing)}."
    shown = table(title, ("Strategy", "Trained on", *together, "Drop", *places), rows)
    return f"<h3>{escape(title)}</h3><p>{escape(text)}</p>{shown}"


def _points(gap: float, low: float, high: float) -> str:
    text, *ends = (f"{100 * value:.1f}".replace("-", "−") for value in (gap, low, high))
    return f'{text} <span class="small">{ends[0]} – {ends[1]}</span>'
