"""Tables of plain text as LaTeX with booktabs, and as Markdown."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from paretune.report.tables import Numbers

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
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "α": r"$\alpha$",
    "ε": r"$\varepsilon$",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")

PREAMBLE = r"""% In the preamble: \usepackage{booktabs} and \usepackage[T1]{fontenc}.
% Letters of other alphabets need xelatex or lualatex.
% What is larger than a page of article at 10 pt (345 pt wide) is continued in the next table."""
_PAGE = 40.0  # em of 8 pt in 345 pt, less half an em
_LINES = 40  # of rows on a page, below a caption of six lines
_GAP = 0.95  # em between two columns, twice \tabcolsep
_WRAP = 10.0  # em; longer cells have several lines
_BREAK = r"\\"
_NARROW = frozenset(".,:;'|()[]! fijlrt")
_WIDE = frozenset("mwMW%@–−…+=<>≤∞")


def as_latex(title: str, note: str, numbers: Numbers) -> list[str]:
    r"""``table`` environments: the first has the columns and the rows that fit on a page, the next ones those that follow.

    Each begins with the first column. Long cells have several lines.

    Args:
        title: begins the captions.
        note: ends that of the first table.
        numbers: the table.
    """
    columns = [_Column.of(head, cells) for head, *cells in zip(numbers.head, *numbers.rows, strict=True)]
    tabulars = [
        _latex(part, rows, first=columns[0]) for part in _side_by_side(columns) for rows in _blocks(numbers)
    ]
    captions = [f"{title}. {note}", *[f"{title}, continued."] * (len(tabulars) - 1)]
    return [
        "\n".join(
            [
                r"\begin{table}[htbp]",
                r"  \centering",
                rf"  \caption{{{latex_text(caption)}}}",
                r"  \smallskip\footnotesize\setlength{\tabcolsep}{4pt}",
                *(f"  {line}" for line in lines),
                r"\end{table}",
            ]
        )
        for caption, lines in zip(captions, tabulars, strict=True)
    ]


def as_markdown(title: str, note: str, numbers: Numbers) -> str:
    """The caption as a paragraph, and the table."""

    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(map(markdown_text, cells))} |"

    rule = f"|---|{'---:|' * (len(numbers.head) - 1)}"
    return "\n".join(
        [markdown_text(f"{title}. {note}"), "", line(numbers.head), rule, *map(line, numbers.rows)]
    )


def latex_text(text: str) -> str:
    """``text`` as LaTeX shows it; letters of other alphabets stay as they are."""
    apart = re.sub(r"(?<=-)(?=-)|(?<=,)(?=,)", "\0", _one_line(text))  # two would join, to a dash or a quote
    return "".join(_LATEX.get(letter, letter) for letter in apart).replace("\0", "{}")


def markdown_text(text: str) -> str:
    """``text`` as Markdown shows it, in a cell of a table too."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@dataclass(frozen=True)
class _Column:
    """One column of text, and how wide it is in em."""

    head: tuple[str, ...]  # its lines
    cells: Sequence[str]
    width: float

    @classmethod
    def of(cls, head: str, cells: Sequence[str]) -> Self:
        """The head has two lines where it is longer than all cells."""
        widest = max(map(_width, cells))
        lines = (head,) if _length(head) <= widest else _halves(head)
        return cls(lines, cells, max(widest, *map(_length, lines)))


def _latex(columns: Sequence[_Column], rows: slice, first: _Column) -> list[str]:
    """The lines of a ``tabular``; ``first`` is set to the left."""
    head, *body = zip(
        *(_set(column.head, column.cells[rows], left=column is first) for column in columns), strict=True
    )
    several = any(_wrapped(cell) for column in columns for cell in column.cells[rows])
    apart = _BREAK + r" \addlinespace[2pt]" if several else _BREAK
    return [
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(columns) - 1)}@{{}}}}",
        r"  \toprule",
        f"  {' & '.join(head)} {_BREAK}",
        r"  \midrule",
        *(f"  {' & '.join(row)} {apart}" for row in body[:-1]),
        f"  {' & '.join(body[-1])} {_BREAK}",
        r"  \bottomrule",
        r"\end{tabular}",
    ]


def _set(head: tuple[str, ...], cells: Sequence[str], *, left: bool) -> Iterator[str]:
    """A head and its cells as LaTeX."""
    side, ragged = ("l", "raggedright") if left else ("r", "raggedleft")
    lines = _BREAK.join(map(latex_text, head))
    yield lines if len(head) == 1 else rf"\shortstack[{side}]{{{lines}}}"
    for cell in cells:
        text = latex_text(cell)
        yield rf"\parbox[t]{{{_width(cell):.1f}em}}{{\{ragged} {text}\strut}}" if _wrapped(cell) else text


def _side_by_side(columns: Sequence[_Column]) -> Iterator[list[_Column]]:
    """The columns of each table; the first is in all of them."""
    first, *others = columns
    page, room = [first], _PAGE - first.width
    for column in others:
        if len(page) > 1 and column.width + _GAP > room:
            yield page
            page, room = [first], _PAGE - first.width
        page.append(column)
        room -= column.width + _GAP
    yield page


def _blocks(numbers: Numbers) -> Iterator[slice]:
    """The rows of each table."""
    start, room = 0, _LINES
    for index, row in enumerate(numbers.rows):
        lines = max(math.ceil(1.2 * _length(cell) / _WRAP) if _wrapped(cell) else 1 for cell in row)
        if index > start and lines > room:
            yield slice(start, index)
            start, room = index, _LINES
        room -= lines
    yield slice(start, len(numbers.rows))


def _halves(text: str) -> tuple[str, ...]:
    """Two lines of about the same length, or one where there is one word."""
    words = text.split()
    lines = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    return min(lines, key=lambda pair: max(map(_length, pair)), default=(text,))


def _wrapped(text: str) -> bool:
    return _length(text) > _WRAP


def _width(text: str) -> float:
    """Of a cell in em; of one with several lines that of its longest word, if this is more than a line should have."""
    return max(_WRAP, *map(_length, ["", *text.split()])) if _wrapped(text) else _length(text)


def _length(text: str) -> float:
    """Of a line in em, rather too long: letters of Computer Modern differ."""
    return sum(
        0.4 if letter in _NARROW else 0.8 if letter in _WIDE or letter.isupper() else 0.55 for letter in text
    )
