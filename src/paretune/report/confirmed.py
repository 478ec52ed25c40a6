"""The section of a report about the points that a stricter attack has confirmed."""

from collections.abc import Sequence
from html import escape

from paretune.frontiers.confirmed import Confirmation
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.pictures import card
from paretune.report.sections import Part
from paretune.report.tables import table


def confirmed_section(
    confirmations: Sequence[Confirmation], looks: dict[str, Style], *, folded: bool
) -> Part:
    """Both robust accuracies of each point, and both areas of each frontier.

    Args:
        confirmations: at least one.
        looks: of the strategies.
        folded: whether the section starts folded to its heading.
    """
    intro = (
        '<p class="small">The attack that measured every point chose these on the select split: the frontier of each seed, '
        "and the last point of each run. The stricter one measured them alone, on the report split. An area here is of the "
        "same points under one of the two; the areas, intervals and verdicts of the other sections are of the attack that "
        "measured every point.</p>"
    )
    tables = []
    for confirmation in confirmations:
        tables.append(f"<h3>{escape(confirmation.title)}</h3>")
        for title, head, rows in confirmation.tables():
            cells = [
                [f"{symbol(looks[strategy])} {escape(strategy)}", *map(escape, rest)]
                for strategy, *rest in rows
            ]
            tables.append(table(title, head, cells))
    return card("confirmed", "Confirmed by a stricter attack", intro + "".join(tables), folded=folded)
