"""The tables of a comparison for papers: LaTeX with booktabs, and Markdown."""

import re
from pathlib import Path

from paretune.frontiers.verdict import Comparison, Condition
from paretune.report.sections import plural
from paretune.report.tables import Numbers, area_numbers, pair_numbers
from paretune.runs import disk
from paretune.runs.naming import attack_text, condition_names

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{letter: f"{{{letter}}}" for letter in "[]*"},  # after the end of a row these would be its options
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
    "α": r"$\alpha$",
    "ε": r"$\varepsilon$",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def write_tables(comparison: Comparison, directory: str | Path) -> tuple[Path, Path]:
    """Write ``tables.tex`` and ``tables.md``: of each condition the areas and the pairs, with their intervals.

    They hold the numbers of the report. Captions name the attack, the examples, the seeds and what intervals cover.

    Args:
        comparison: from :func:`paretune.compare`.
        directory: made if needed.

    Returns:
        Both paths.
    """
    tex, markdown = Path(directory) / "tables.tex", Path(directory) / "tables.md"
    parts = list(_parts(comparison))
    needed = r"% \usepackage{booktabs}, and \usepackage[T1]{fontenc} for quotes in names"
    disk.write_text(tex, "\n\n".join([needed, *(_as_latex(*part) for part in parts)]) + "\n")
    disk.write_text(markdown, "\n\n".join(_as_markdown(*part) for part in parts) + "\n")
    return tex, markdown


def _parts(comparison: Comparison) -> list[tuple[str, Numbers]]:
    """Captions and tables."""
    conditions = comparison.conditions
    names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
    return [
        (f"{numbers.name}: {name}. {_circumstances(condition)}", numbers)
        for name, condition in zip(names, conditions, strict=True)
        for numbers in (area_numbers(condition), pair_numbers(condition))
        if numbers.rows
    ]


def _circumstances(condition: Condition) -> str:
    """What the numbers are about: attack, examples, seeds, and what intervals cover."""
    seeds = sorted({seed for area in condition.areas for seed in area.seeds})
    counts = sorted({len(area.seeds) for area in condition.areas})
    of_each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    groups = "" if condition.groups is None else f" in {condition.groups:,} groups"
    covered = "the sampling of examples and the choice of checkpoints"
    floors = "".join(
        f" above {name} {floor:g}"
        for name, floor in (
            ("clean", condition.settings.min_clean),
            ("robust", condition.settings.min_robust),
        )
        if floor
    )
    start = f"Areas from ({condition.settings.reference[0]:g}, {condition.settings.reference[1]:g}){floors}"
    return (
        f"Attack {attack_text(condition.attack)}; checkpoints chosen on {condition.examples_select:,} examples, measured on "
        f"n = {condition.examples:,}{groups}; {of_each} training {plural('seed', counts[-1])} of each strategy "
        f"({', '.join(map(str, seeds))}), {condition.k} {plural('point', condition.k)} per run. {start}. "
        f"Intervals at {100 * condition.level:g}% cover {covered}"
        + (", and the luck of training." if condition.seeds_resampled else ", not the luck of training.")
    )


def _as_latex(caption: str, numbers: Numbers) -> str:
    body = [" & ".join(map(latex_text, row)) + r" \\" for row in (numbers.head, *numbers.rows)]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(caption)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(numbers.head) - 1)}}}",
        r"    \toprule",
        f"    {body[0]}",
        r"    \midrule",
        *(f"    {line}" for line in body[1:]),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _as_markdown(caption: str, numbers: Numbers) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(map(markdown_text, cells))} |"

    rule = f"|---|{'---:|' * (len(numbers.head) - 1)}"
    return "\n".join([markdown_text(caption), "", line(numbers.head), rule, *map(line, numbers.rows)])


def latex_text(text: str) -> str:
    """``text`` as LaTeX shows it; letters of other alphabets stay as they are."""
    apart = _one_line(text).replace("--", "-\0-").replace("--", "-\0-")  # two hyphens are a dash
    return "".join(_LATEX.get(letter, letter) for letter in apart).replace("\0", "{}")


def markdown_text(text: str) -> str:
    """``text`` as Markdown shows it, in a cell of a table too."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
