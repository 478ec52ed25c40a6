"""Tables of image files and their labels: CSV and Parquet files and data frames."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.data.files import open_file, readable
from paretune.data.parts import PART_ROLES, Part, class_labels
from paretune.data.pixels import LazyPixels
from paretune.runs.disk import regular
from paretune.runs.parquet import read_parquet

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
# Which column is what, in lower case, where nobody says.
COLUMNS = {
    "image": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"),
    "label": ("label", "labels", "class", "target", "category"),
    "split": ("split",),
    "group": ("group",),
    "domain": ("domain",),
    "subset": ("subset",),
}


def read_columns(text: str) -> dict[str, str]:
    """What :func:`paretune.load_data` takes as ``columns``, from a text such as ``"image=file, label=species"``.

    Raises:
        ValueError: It is something else, or says what none or two columns are.
    """
    columns: dict[str, str] = {}
    for item in text.split(","):
        what, _, column = (part.strip() for part in item.partition("="))
        if what not in COLUMNS or not column or what in columns:
            raise ValueError(
                f"columns must say once each what a column holds ({', '.join(COLUMNS)}) and its name, as in "
                f"image=file,label=species; got {item.strip()!r}"
            )
        columns[what] = column
    return columns


def read_table_file(path: Path) -> "pd.DataFrame":
    """The cells of a .csv, .tsv or .parquet file, as they stand there.

    The columns of a CSV file are separated by commas, semicolons or tabs, whichever its first line has most of.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: It is Parquet, and pyarrow is not installed.
        ValueError: It is no table.
    """
    import pandas as pd

    regular(path)
    if path.suffix.lower() in (".parquet", ".pq"):
        return read_parquet(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}; save it as one") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is no table: {error}") from None


def read_table(
    frame: "pd.DataFrame",
    name: str,
    *,
    base: Path,
    columns: Mapping[str, str],
    classes: Sequence[str] | None,
    skip_bad: bool,
) -> dict[str, Part]:
    """The images that a table names, by role; without a column of splits, all in ``train``.

    Args:
        frame: One row an image.
        name: What to call the table.
        base: Where relative paths start.
        columns: Names of columns by what they hold, see ``COLUMNS``.
        classes: Names of the classes in the order of labels; None takes those of the table, sorted.
        skip_bad: As in :func:`~paretune.data.files.readable`.

    Raises:
        ValueError: A column is missing, a cell is empty or means nothing, a file is named twice, or images cannot be read.
    """
    if frame.empty:
        raise ValueError(f"{name} has no rows")
    chosen = _chosen(frame, name, columns)
    cells = {what: _texts(frame[column], f"{name}: column {column!r}") for what, column in chosen.items()}
    paths = [os.path.normpath(path) for path in cells["image"]]
    files = [base / path for path in paths]
    if repeated := sorted(path for path, count in Counter(paths).items() if count > 1):
        raise ValueError(
            f"{name} names {len(repeated)} files more than once: {', '.join(repeated[:10])}; leave one row of each, so that "
            "no image is both learnt and measured"
        )
    labels, known, _ = class_labels(cells["label"], classes or None, f"{name}: row")
    kept = readable(files, name, skip_bad=skip_bad)
    if lost := sorted(set(labels.tolist()) - set(labels[kept].tolist())):
        raise ValueError(f"{name}: no image of the class {known[lost[0]]!r} can be read")
    roles = _roles(cells["split"], name) if "split" in cells else ["train"] * len(files)
    parts = {}
    for role in dict.fromkeys(roles):
        rows = [row for row in kept if roles[row] == role]
        shown = [str(files[row]) for row in rows]
        groups, subsets = (
            tuple(cells[what][row] for row in rows) if what in cells else None for what in ("group", "subset")
        )
        listing = [
            repr((Path(paths[row]).as_posix(), files[row].stat().st_size, cells["label"][row]))
            for row in rows
        ]
        parts[role] = Part(
            classes=known,
            labels=labels[rows],
            pixels=LazyPixels(partial(open_file, shown), shown.__getitem__, files=True),
            content="\n".join([*listing, repr(groups)]),
            groups=groups,
            skipped=roles.count(role) - len(rows),
            subsets=subsets,
        )
    return parts


def domain_cells(frame: "pd.DataFrame", name: str, columns: Mapping[str, str]) -> list[str]:
    """The domain of each row.

    Raises:
        ValueError: There is no column of domains, or a cell of it is empty.
    """
    chosen = _chosen(frame, name, columns)
    if "domain" not in chosen:
        listed = ", ".join(map(str, frame.columns))
        raise ValueError(
            f"{name} has no column called domain; its columns are {listed}. Say which with columns={{'domain': ...}}"
        )
    return _texts(frame[chosen["domain"]], f"{name}: column {chosen['domain']!r}")


def _chosen(frame: "pd.DataFrame", name: str, columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each kind that the table has."""
    present = [str(column) for column in frame.columns]
    listed = f"its columns are {', '.join(present)}"
    chosen: dict[str, str] = {}
    missing: list[str] = []
    for what, usual in COLUMNS.items():
        wanted = columns.get(what)
        candidates = [
            column for column in present if (column == wanted if wanted else column.strip().lower() in usual)
        ]
        if len(candidates) > 1:
            raise ValueError(
                f"{name} has several columns that may be the {what}: {', '.join(candidates)}; name one with "
                f"columns={{{what!r}: {candidates[0]!r}}} (--columns {what}={candidates[0]}), or rename the others"
            )
        if candidates:
            chosen[what] = candidates[0]
        elif wanted:
            near = difflib.get_close_matches(wanted, present, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{name} has no column {wanted!r} ({what}); {hint}{listed}")
        elif what in ("image", "label"):
            missing.append(f"no column of the {what} ({', '.join(usual)})")
    if missing:
        raise ValueError(
            f"{name} has {' and '.join(missing)}; {listed}. Rename them, or say which with "
            'columns={"image": ..., "label": ...} (--columns image=...,label=...)'
        )
    return chosen


def _texts(column: "pd.Series[Any]", where: str) -> list[str]:
    """The cells without spaces around them; 8.0, which a column with a gap makes of 8, is ``8``.

    Raises:
        ValueError: One is empty.
    """
    empty = column.isna()
    texts = [
        "" if gap else str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
        for cell, gap in zip(column, empty, strict=True)
    ]
    if missing := [row for row, text in enumerate(texts) if not text]:
        raise ValueError(
            f"{where} is empty in {len(missing)} rows, first in row {missing[0]} (counted from 0)"
        )
    return texts


def _roles(cells: Sequence[str], name: str) -> list[str]:
    roles = [PART_ROLES.get(cell.lower(), "") for cell in cells]
    if strange := sorted({cell for cell, role in zip(cells, roles, strict=True) if not role}):
        raise ValueError(
            f"{name} has the splits {', '.join(map(repr, strange[:10]))}; known are {', '.join(PART_ROLES)}"
        )
    return roles
