"""Text as LaTeX and Markdown show it, and tables cut where the page ends."""

import re

from paretune.report.tables import Numbers
from paretune.report.typeset import as_latex, latex_text, markdown_text


def test_latex_text_is_escaped() -> None:
    hostile = r"50% of A&B_C #1 {x} $y$ ~z^2 \end{tabular}"
    assert latex_text(hostile).endswith(
        r"\textasciitilde{}z\textasciicircum{}2 \textbackslash{}end\{tabular\}"
    )
    assert latex_text("50% A&B_C #1 $y$") == r"50\% A\&B\_C \#1 \$y\$"
    assert latex_text("[1ex] *") == "{[}1ex{]} {*}"
    assert latex_text("'a' --- b,,c") == r"\textquotesingle{}a\textquotesingle{} -{}-{}- b,{},c"
    assert latex_text("−1 – 2 < 3 ≤ ∞ größer") == r"$-$1 -- 2 $<$ 3 $\leq$ $\infty$ größer"


def test_markdown_text_is_escaped() -> None:
    assert markdown_text("a|b\n*c*") == r"a\|b \*c\*"


def test_a_narrow_table_is_one_table() -> None:
    (table,) = as_latex("Title", "Said.", Numbers("", ("Name", "Of two words"), [("a", "1"), ("b", "2")]))
    assert r"\caption{Title. Said.}" in table
    assert r"Name & \shortstack[r]{Of two\\words} \\" in table
    assert re.findall(r"^    ([ab] .*)$", table, flags=re.M) == [r"a & 1 \\", r"b & 2 \\"]


def test_what_does_not_fit_beside_or_below_is_continued() -> None:
    """Ten columns of 8 em do not fit into 40 em, nor 50 rows on a page; each cell is in one table, its row's name in all."""
    head = ("Name", *(f"column {n}" for n in range(10)))
    rows = [(f"row {n}", *(f"{n:04}-{place:08}" for place in range(10))) for n in range(50)]
    tables = as_latex("Title", "Said.", Numbers("", head, rows))
    assert len(tables) > 4
    assert [r"\caption{Title. Said.}" in table for table in tables] == [True, *[False] * (len(tables) - 1)]
    assert all(r"\caption{Title, continued.}" in table for table in tables[1:])
    cells = re.findall(r"\d{4}-\d{8}", "\n".join(tables))
    assert sorted(cells) == sorted(cell for row in rows for cell in row[1:])
    for table in tables:
        names, values = (
            [re.findall(pattern, line) for line in table.splitlines() if "row " in line]
            for pattern in (r"row (\d+)", r"(\d{4})-")
        )
        assert 0 < len(names) <= 40
        assert all(
            {int(value) for value in of} == {int(name)} for (name,), of in zip(names, values, strict=True)
        )


def test_long_cells_have_several_lines() -> None:
    numbers = Numbers(
        "", ("Name", "Which"), [("a name that is longer than ten em", "1"), ("b", "words " * 9)]
    )
    (table,) = as_latex("Title", "", numbers)
    assert (
        r"\parbox[t]{10.0em}{\raggedright a name that is longer than ten em\strut} & 1 \\ \addlinespace[2pt]"
        in table
    )
    assert r"b & \parbox[t]{10.0em}{\raggedleft words words" in table
