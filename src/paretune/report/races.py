"""The section of a report about a race: what was run, who was put out after which round, and by how much."""

from collections.abc import Sequence
from html import escape

from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.pictures import card
from paretune.report.sections import Part
from paretune.report.tables import table
from paretune.runs.naming import condition_names


def race_section(conditions: Sequence[Condition], looks: dict[str, Style], *, folded: bool) -> Part:
    """A table for each condition whose runs are those of a race.

    Args:
        conditions: what the report is about.
        looks: of the strategies.
        folded: whether the section starts folded to its heading.
    """
    raced = [condition for condition in conditions if condition.race_tables()]
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in raced])
    body = (
        '<p class="small">Strategies got their seeds in rounds; those that were behind another one for sure got no more. '
        "That was decided on the select split, by the areas here; all other numbers of this page are of the report split, "
        "which had no part in it. What is out is not among the strategies that may be best: the tests of the race and those "
        f"on the report split together err with a probability of {100 * (1 - raced[0].level):.3g}% at most.</p>"
    )
    for name, condition in zip(names, raced, strict=True):
        assert condition.race is not None
        head, rows = condition.race.numbers(condition.task, condition.attack, condition.epsilon)
        marked = [
            (f"{_symbol(looks, row[0])}<span>{escape(row[0])}</span>", *map(escape, row[1:])) for row in rows
        ]
        title = f"<h3>{escape(name)}</h3>" if len(raced) > 1 else ""
        body += f"{title}{table(f'Race on {name}', [cell.capitalize() for cell in head], marked)}"
    assert raced[0].race is not None
    body += f"<p>{escape(raced[0].race.sentence)}.</p>"
    return card("race", "Race", body, folded=folded)


def _symbol(looks: dict[str, Style], strategy: str) -> str:
    """Of a strategy that the report is about; a limit may have left it out."""
    return symbol(looks[strategy]) if strategy in looks else ""
