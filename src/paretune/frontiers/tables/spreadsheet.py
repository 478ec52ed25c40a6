"""CSV that a spreadsheet shows as it is: a text that it would run as a formula gets an apostrophe, and loses it again.

A cell that begins with ``=``, ``+``, ``-``, ``@`` (also in full width), a tab or a line break may be a formula, and names
come from files that anybody may have written: https://owasp.org/www-community/attacks/CSV_Injection. Numbers stay as
they are.
"""

import csv
import re
from collections.abc import Iterable

import pandas as pd

# With apostrophes before it, so that taking one away is the inverse; the wide forms are for East Asian spreadsheets.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV, its texts made harmless."""
    safe = table.apply(
        lambda cells: cells.map(lambda cell: harmless(cell) if isinstance(cell, str) else cell)
    )
    text = str(safe.to_csv(index=False))
    # Only with quotes around every text does a carriage return not end the row.
    return str(safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)) if "\r" in text else text


def harmless(text: str) -> str:
    """The text, behind an apostrophe if it could be a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _numbers(text) else text


def original(texts: Iterable[str]) -> list[str]:
    """What :func:`harmless` was given, for the texts of one column; they stay as they are if it did not make them."""
    told = list(texts)
    if any(harmless(text) != text and not text.startswith("'") for text in told):
        return told  # a formula is among them
    return [text[1:] if text.startswith("'") and _FORMULA.match(text) else text for text in told]


def _numbers(text: str) -> bool:
    """Whether it is a number, or numbers with a space between them."""
    return re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?( [+-]?[\d.]+(e[+-]?\d+)?)*", text) is not None
