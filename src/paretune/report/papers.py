"""The tables of a comparison or an analysis for papers: LaTeX with booktabs, and Markdown."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from paretune.frontiers.across import AcrossTasks
from paretune.frontiers.deciding import listed
from paretune.frontiers.tables.analysis import Analysis
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.frontiers.verdict import Comparison, Condition
from paretune.report.analysis_tables import behind_numbers, group_numbers
from paretune.report.overview import over_tasks
from paretune.report.sections import plural
from paretune.report.tables import Numbers, area_numbers, pair_numbers, rank_numbers, rank_pair_numbers
from paretune.report.typeset import PREAMBLE, as_latex, as_markdown
from paretune.runs import disk
from paretune.runs.naming import attack_text, condition_names, threat_text

_HELD = 16  # tables in a row without a new page; LaTeX ends with an error where it has to hold back about 50
_PAIRED = 10  # strategies over tasks; of more, only pairs with the first are written, as the page shows them


class _Part(NamedTuple):
    """A table and its caption: what it is of, and what its numbers are about."""

    title: str
    note: str
    numbers: Numbers


def write_tables(of: Comparison | Analysis, directory: str | Path) -> tuple[Path, Path]:
    """Write ``tables.tex`` and ``tables.md``: of each task and attack the areas and the pairs, with their intervals.

    Of several tasks, the mean areas and the pairs over all of them follow. The tables hold the numbers of the report.
    Captions name the attack, the examples, the seeds and what intervals cover.

    Args:
        of: what :func:`paretune.compare` or :func:`paretune.analyze` returns.
        directory: made if needed.

    Returns:
        Both paths.
    """
    tex, markdown = Path(directory) / "tables.tex", Path(directory) / "tables.md"
    every = _of_comparison(of) if isinstance(of, Comparison) else _of_analysis(of)
    parts = [part for part in every if part.numbers.rows]
    tables = [table for part in parts for table in as_latex(*part)]
    for place in range(_HELD, len(tables), _HELD):
        tables[place] = f"\\clearpage\n{tables[place]}"
    disk.write_text(tex, "\n\n".join([PREAMBLE, *tables]) + "\n")
    disk.write_text(markdown, "\n\n".join(as_markdown(*part) for part in parts) + "\n")
    return tex, markdown


def _of_comparison(comparison: Comparison) -> Iterator[_Part]:
    conditions = comparison.conditions
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
    for name, condition in zip(names, conditions, strict=True):
        for numbers in (area_numbers(condition), pair_numbers(condition)):
            yield _Part(f"{numbers.name}: {name}", _circumstances(condition), numbers)
    for across in over_tasks(comparison):
        yield from _of_all_tasks(across, _start(conditions[0]))


def _of_analysis(analysis: Analysis) -> Iterator[_Part]:
    for task in analysis.tasks:
        for numbers in (group_numbers(task), behind_numbers(task)):
            title = f"{numbers.name}: {task.task}" if task.task else numbers.name
            yield _Part(title, f"{_start(task)} {task.covers}", numbers)
    if analysis.across is not None:
        yield from _of_all_tasks(analysis.across, _start(analysis.tasks[0]))


def _of_all_tasks(across: AcrossTasks, start: str) -> Iterator[_Part]:
    """Mean areas, and pairs over the tasks."""
    under = f", {threat_text(across.threat, across.epsilon)}" if across.threat else ""
    attack = f"Attack {attack_text(across.attack)}. " if across.attack else ""
    missing = f" Not in every task, and left out: {listed(across.left_out)}." if across.left_out else ""
    tests = f"p is Student's t over the tasks, adjusted over {len(across.pairs)} pairs (Holm)."
    for numbers, note in (
        (rank_numbers(across), f"Tasks: {', '.join(across.tasks)}. {start}"),
        (rank_pair_numbers(across, _PAIRED), tests),
    ):
        title = f"{numbers.name}: {len(across.tasks)} tasks{under}"
        yield _Part(title, f"{attack}{note}{missing}", numbers)


def _circumstances(condition: Condition) -> str:
    """What the numbers are about: attack, examples, seeds, and what intervals cover."""
    seeds = sorted({seed for area in condition.areas for seed in area.seeds})
    counts = sorted({len(area.seeds) for area in condition.areas})
    of_each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    groups = "" if condition.groups is None else f" in {condition.groups:,} groups"
    covered = "the sampling of examples and the choice of checkpoints"
    return (
        f"Attack {attack_text(condition.attack)}; checkpoints chosen on {condition.examples_select:,} examples, measured on "
        f"n = {condition.examples:,}{groups}; {of_each} training {plural('seed', counts[-1])} of each strategy "
        f"({', '.join(map(str, seeds))}), {condition.k} {plural('point', condition.k)} per run. {_start(condition)} "
        f"Intervals at {100 * condition.level:g}% cover {covered}"
        + (", and the luck of training." if condition.seeds_resampled else ", not the luck of training.")
    )


def _start(ranking: Condition | TaskRanking) -> str:
    """Where areas start."""
    settings = ranking.settings
    floors = "".join(
        f" above {name} {floor:g}"
        for name, floor in (("clean", settings.min_clean), ("robust", settings.min_robust))
        if floor
    )
    return f"Areas from ({settings.reference[0]:g}, {settings.reference[1]:g}){floors}."
