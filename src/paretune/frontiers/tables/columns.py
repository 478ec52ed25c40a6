"""Somebody's table of results as clean, robust, task, group and seed; every complaint names the cell.

A CSV file is read as text, so that nothing in it is guessed: a group ``01`` stays ``01``, a group ``NA`` is a name,
a cell that starts with ``=`` is a name too, also behind the apostrophe that
:mod:`paretune.frontiers.tables.spreadsheet` puts before it. Only the columns that are accuracies become numbers.
"""

import csv
import difflib
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.frontiers.tables.spreadsheet import original
from paretune.runs.disk import regular
from paretune.runs.parquet import read_parquet

Names = str | Sequence[str]  # one column, or several; a string may name several with commas between them

_BREAK = r"\r\n|\r|\n"  # the end of a line
_SHOWN = 20  # columns listed in an error
# One frontier holds points of one of each. A setting of training with such a name must be renamed.
_UNMIXED = ("task", "attack", "threat", "epsilon")


@dataclass(frozen=True, eq=False)
class Table:
    """Cells as they came, and where they came from."""

    frame: pd.DataFrame
    file: Path | None = None

    @classmethod
    def read(cls, source: pd.DataFrame | str | Path) -> "Table":
        """A DataFrame, or a file that ends with .csv, .tsv or .parquet.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: it is Parquet, and pyarrow is not installed.
            ValueError: it is a directory, cannot be read as a table, or has no rows.
        """
        if isinstance(source, pd.DataFrame):
            table = cls(source.rename(columns=str))
        else:
            path = Path(source)
            if path.is_dir():
                raise ValueError(f"{path} is a directory; `paretune report {path}` judges the runs in it")
            try:
                regular(path)
            except FileNotFoundError:
                raise FileNotFoundError(f"there is no file {path}") from None
            readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": read_parquet, ".pq": read_parquet}
            if path.suffix.lower() not in readers:
                raise ValueError(f"{path} must end with .csv, .tsv or .parquet")
            table = cls(readers[path.suffix.lower()](path), path)
        if table.frame.empty:
            raise ValueError(f"{table.file or 'the table'} has no rows")
        return table

    def names(self, wanted: Names, role: str) -> list[str]:
        """The columns that ``wanted`` names.

        Raises:
            ValueError: there is none of that name; the nearest is named.
        """
        columns = [str(column) for column in self.frame.columns]
        if isinstance(wanted, str) and wanted not in columns:
            wanted = [part.strip() for part in wanted.split(",") if part.strip()]
        chosen = [wanted] if isinstance(wanted, str) else [*wanted]
        for name in chosen:
            if columns.count(name) == 1:
                continue
            where = self.file or "the table"
            if name in columns:
                raise ValueError(f"{where} has {columns.count(name)} columns {name!r}; rename all but one")
            folded = {column.casefold(): column for column in reversed(columns)}
            near = difflib.get_close_matches(name.casefold(), folded, n=1)
            hint = f"; did you mean {folded[near[0]]!r}?" if near else "."
            listed = ", ".join(columns[:_SHOWN]) + (", …" if len(columns) > _SHOWN else "")
            raise ValueError(f"{where} has no column {name!r} ({role}){hint} Columns: {listed}")
        if not chosen:
            raise ValueError(f"{role} must name a column; got {wanted!r}")
        return chosen

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column of finite numbers.

        Raises:
            ValueError: a cell is not one; its place and content are named.
        """
        cells = self.frame[column]
        values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        wrong = ~np.isfinite(values)
        if pd.api.types.is_bool_dtype(cells):
            wrong[:] = True
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{self.place(row)}: column {column!r} must hold finite numbers; got {_shown(cells.iloc[row])}"
            )
        return values

    def texts(self, columns: Sequence[str]) -> "pd.Series[str]":
        """One name a row, out of one or several columns.

        Raises:
            ValueError: a cell is empty.
        """
        parts = []
        for column in columns:
            cells = self.frame[column]
            empty = cells.isna().to_numpy() | (cells.astype(str).str.strip() == "").to_numpy()
            if empty.any():
                raise ValueError(f"{self.place(int(np.argmax(empty)))}: column {column!r} is empty")
            values = [*cells.unique()]
            named = [_name(value) for value in values]
            names = dict(zip(values, original(named) if self.counts == "line" else named, strict=True))
            parts.append(cells.map(names).astype(object).reset_index(drop=True))
        if len(parts) == 1:
            return parts[0]
        combined = pd.DataFrame(dict(enumerate(parts)))
        distinct = combined.drop_duplicates()
        plain = distinct.agg(" / ".join, axis=1)
        if plain.duplicated().any():  # the separator occurs in the cells
            distinct = distinct.map(repr)
            combined = combined.map(repr)
        return combined.agg(" / ".join, axis=1)

    @property
    def counts(self) -> str:
        """What :attr:`rows` are."""
        return "line" if self.file is not None and self.file.suffix.lower() in (".csv", ".tsv") else "row"

    @property
    def rows(self) -> NDArray[np.intp]:
        """Where the rows are, as a person finds them: lines of a CSV file from 1, else positions from 0."""
        return self.frame.index.to_numpy() if self.counts == "line" else np.arange(len(self.frame))

    def place(self, row: int) -> str:
        """Where one row is, in words."""
        where = f"{self.counts} {self.rows[row]}"
        return where if self.file is None else f"{self.file}, {where}"


def tidy(
    table: Table,
    *,
    group: Names,
    clean: str,
    robust: str,
    task: Names | None,
    seed: str | None,
    select: tuple[str, str] | None,
    shifted: str | None,
    percent: bool,
) -> pd.DataFrame:
    """The columns ``task``, ``group``, ``seed`` (text), ``clean``, ``robust``, with ``select`` their select twins,
    ``shifted`` if it is named, and where each row was: ``line`` of a CSV file, else ``row``.

    Raises:
        ValueError: a column is missing or named twice, a cell is empty, not a number or out of range, or one task
            holds several attacks.
    """
    measures = {"clean": clean, "robust": robust}
    if select is not None:
        if isinstance(select, str) or len(select) != 2:
            raise ValueError(
                f"select must be two columns, the clean and the robust accuracies that choose; got {select!r}"
            )
        measures |= dict(zip(("clean_select", "robust_select"), select, strict=True))
    if shifted is not None:
        measures["shifted"] = shifted
    keys = {"group": table.names(group, "group")}
    for role, wanted in (("task", task), ("seed", seed)):
        if wanted is not None:
            keys[role] = table.names(wanted, role)
    numbers = {role: table.names([name], role)[0] for role, name in measures.items()}
    used: dict[str, str] = {}
    for role, name in [*numbers.items(), *((role, name) for role, names in keys.items() for name in names)]:
        if used.setdefault(name, role) != role:
            raise ValueError(f"{used[name]} and {role} are both column {name!r}; each needs its own")
    frame = pd.DataFrame({role: table.texts(names) for role, names in keys.items()})
    frame = frame.assign(**{role: "" for role in ("task", "seed") if role not in frame})
    accuracies = {role: table.numbers(name) for role, name in numbers.items()}
    _check_range(table, numbers, accuracies, percent)
    if percent:
        _check_percentages(table, frame, numbers, accuracies)
    _check_unmixed(table, frame["task"], used)
    frame = frame.assign(**{role: values / 100 if percent else values for role, values in accuracies.items()})
    return frame.assign(**{table.counts: table.rows})


def _check_range(
    table: Table, columns: dict[str, str], values: dict[str, NDArray[np.float64]], percent: bool
) -> None:
    most = 100 if percent else 1
    for role, of_role in values.items():
        wrong = ~((of_role >= 0) & (of_role <= most))
        if wrong.any():
            row = int(np.argmax(wrong))
            hint = ""
            if not percent and 1 < of_role[row] <= 100 and float(of_role.max()) <= 100:
                hint = ". These look like percentages: say so with percent=True (--percent)"
                fractions = [columns[other] for other, rest in values.items() if 0 < float(rest.max()) <= 1]
                if fractions:
                    hint = f". These look like percentages, but {fractions[0]!r} like fractions: bring both to one unit"
            raise ValueError(
                f"{table.place(row)}: column {columns[role]!r} must hold accuracies from 0 to {most}; got "
                f"{of_role[row]:g}{hint}"
            )


def _check_percentages(
    table: Table, keys: pd.DataFrame, columns: dict[str, str], values: dict[str, NDArray[np.float64]]
) -> None:
    """Refuse fractions among percentages: in all columns, in one, in that of one task, or in the clean ones of a group.

    Robust accuracies of one group may all be below one percent, and only get a note.
    """
    if 0 < max(float(of_role.max()) for of_role in values.values()) <= 1:
        raise ValueError("no accuracy is above 1, so these are fractions; leave percent (--percent) out")
    for role, of_role in values.items():
        parts = [("task",), ("task", "group")] if role.startswith("clean") else [("task",)]
        for names in parts:
            most = pd.Series(of_role).groupby([keys[name] for name in names]).transform("max").to_numpy()
            if (wrong := (most > 0) & (most <= 1)).any():
                row = int(np.argmax(wrong))
                where = "".join(
                    f" of {name} {keys[name].iloc[row]!r}" for name in names[::-1] if keys[name].iloc[row]
                )
                raise ValueError(
                    f"{table.place(row)}: column {columns[role]!r} has nothing above 1{where}, so these look like "
                    f"fractions among percentages; got {of_role[row]:g}. Bring all to one unit: fractions, without "
                    "percent (--percent), if they really are below one percent"
                )


def _check_unmixed(table: Table, task: "pd.Series[str]", used: dict[str, str]) -> None:
    for column in _UNMIXED:
        if column in used or column not in table.frame:
            continue
        cells = table.frame[column].astype(str).reset_index(drop=True)
        first = cells.groupby(task).transform("first")
        if (mixed := (cells != first).to_numpy()).any():
            row = int(np.argmax(mixed))
            raise ValueError(
                f"{table.place(row)}: column {column!r} is {_shown(cells.iloc[row])}, but "
                f"{_shown(first.iloc[row])} before; one frontier holds points of one {column}. Name it in "
                f"task= (--task), or rename the column if it is a setting of training"
            )


def _read_csv(path: Path) -> pd.DataFrame:
    """All cells as text, without the space around them; the index is the line on which a row starts, from 1."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line ends inside of cells stay as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    head = next(iter(text.splitlines()), "")
    separator = max("," if path.suffix.lower() == ".csv" else "\t", ";", "\t", key=head.count)
    names = [
        name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    ]
    if not any(names):
        raise ValueError(f"{path} is empty; its first line must name the columns")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text, newline=""),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                header=0,
                skip_blank_lines=False,
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        reason = "rows have more cells than its first line" if isinstance(error, Warning) else str(error)
        raise ValueError(f"{path} is not a table: {' '.join(reason.split())}") from None
    frame.columns = pd.Index(names)
    frame = frame.fillna("")
    lines = np.ones(len(frame), dtype=np.intp)
    if '"' in text:  # quoted cells may go over several lines
        lines += sum((frame.iloc[:, i].str.count(_BREAK).to_numpy() for i in range(frame.shape[1])), start=0)
    first = 2 + sum(len(re.findall(_BREAK, name)) for name in names)
    frame.index = pd.Index(first + np.cumsum(lines) - lines)
    frame = frame.apply(lambda cells: cells.str.strip())
    kept: pd.DataFrame = frame[(frame != "").any(axis=1)]
    return kept


def _name(value: Any) -> str:
    """A cell as a name: 8.0, which a column with a gap makes of 8, is ``8``."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _shown(cell: Any) -> str:
    """A cell in an error, with what may be wrong with it."""
    text = str(cell)
    if not text.strip():
        return "an empty cell"
    hint = ""
    if text.endswith("%"):
        hint = ", which needs no sign: write 93 and say percent=True (--percent)"
    elif text.count(",") == 1 and text.replace(",", "").isdigit():
        hint = ", which needs a decimal point"
    return repr(text if len(text) <= 60 else text[:59] + "…") + hint
