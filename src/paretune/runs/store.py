"""One run is one directory: its configuration, its points, and which examples each point got right.

    RUN/config.json           what makes the run; its hash is the key of the run
    RUN/points.jsonl          one line per evaluated point: (step, attack, epsilon) -> accuracies and cost
    RUN/bits/step-….safetensors   packed correctness of every example, from which the accuracies follow
    RUN/confirmed/step-….safetensors  of a few points, under a stricter attack
    RUN/examples.safetensors      labels of the report examples, and pictures of a few under attack
    RUN/checkpoint.safetensors    of an unfinished run; says how many points there are up to its step
    RUN/adapter               of a finished run
    RUN/log.jsonl             one line per step of training, if that wrote the run
    RUN/DONE                  written last; says how many points and lines of the log there are, and what each file was

Lines are appended with a single synced write and files are replaced whole, so a run that is killed at any
moment loses at most the point it was writing. Whoever reads it sees when lines were lost. Directories can be
copied, merged and read without this library.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.runs import disk
from paretune.runs.confirmed import Confirmed, read_confirmed
from paretune.runs.digests import FILES as DIGESTS
from paretune.runs.digests import check_unchanged, file_digests, sealed
from paretune.runs.examples import EXAMPLES, Examples
from paretune.runs.forgetting import forget
from paretune.runs.lines import append_whole, whole_lines
from paretune.runs.objects import as_url
from paretune.runs.rows import (
    OTHERWISE,
    ROW_FIELDS,
    SCHEMA,
    SEARCH,
    Bits,
    Row,
    check_bits,
    check_log,
    check_none_lost,
    check_row,
    describe_log,
    differences,
    identity,
    implied,
    left_out,
    load_packed,
    pack,
    parts_of,
    read_config,
    read_json,
    read_rows,
    read_stated,
    run_key,
    with_elsewhere,
)
from paretune.runs.storage import local_copy

log = logging.getLogger(__name__)


_POINT = ["run", "step", "attack", "epsilon"]  # what no two points have in common


class RunWriter:
    """Writes one run; opened again on the same directory with the same configuration, it goes on.

    Args:
        path: the run directory; made if it does not exist.
        config: plain JSON values. ``task``, ``strategy``, ``strategy_config`` and ``seed`` are required,
            anything else that makes the run what it is belongs here too. ``schema`` is added.
        resume: False forgets everything but the configuration first.

    Raises:
        ValueError: ``config`` lacks a required key, the directory holds a run with another configuration, or rows or
            lines of its log were damaged or lost.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **config}, allow_nan=False))
        missing = [key for key in ("task", "strategy", "strategy_config", "seed") if key not in self.config]
        if missing:
            raise ValueError(f"config lacks {', '.join(missing)}; got the keys {', '.join(self.config)}")
        self.key = run_key(self.config)
        if (self.path / "config.json").exists():
            stored = read_config(self.path)
            if run_key(stored) != self.key:
                raise ValueError(
                    f"{self.path} holds a run with another configuration: "
                    f"{differences(stored, self.config)}. Choose another directory, or remove this one"
                )
        else:
            disk.write_json(self.path / "config.json", self.config)
        if not resume:
            forget(self.path)
        self._cut_torn_line()
        self._rows = [row for _, row in read_rows(self.path, self.config)]
        stated = read_stated(self.path, self.key)
        check_none_lost(self.path, stated, (row["step"] for row in self._rows))
        if stated is not None and stated.done:
            check_log(self.path, stated)
        else:
            whole_lines(self.path / "log.jsonl", 0 if stated is None else int(stated.step))

    @property
    def done(self) -> bool:
        """Whether :meth:`finish` was called."""
        return (self.path / "DONE").exists()

    @property
    def points(self) -> int:
        """How many rows are stored."""
        return len(self._rows)

    def append(self, rows: Row | Sequence[Row], bits: Mapping[str, NDArray[np.bool_]]) -> None:
        """Store one evaluation point: one row per (attack, epsilon), all of the same step.

        A point that is stored already is left as it is, so that a resumed run can repeat it.

        Args:
            rows: mappings with the keys of ``ROW_FIELDS``. ``schema``, ``run``, ``task``, ``strategy``,
                ``config``, ``seed`` and ``bits`` may be left out, as they follow from the run and the step.
            bits: boolean vectors ``report/clean``, ``select/clean`` and, for each row, ``report/<bits_key>``
                and ``select/<bits_key>``; true where the model is right. A robust bit implies the clean one. For what a row
                has under ``elsewhere``, ``elsewhere/NAME/clean`` and maybe ``elsewhere/NAME/<bits_key>`` likewise.

        Raises:
            ValueError: a field is missing or out of range, rows and bits contradict each other, or a file of the finished
                run was changed.
        """
        complete = [self._complete(row) for row in ([rows] if isinstance(rows, Mapping) else rows)]
        if len({row["step"] for row in complete}) > 1 or len({*map(identity, complete)}) < len(complete):
            raise ValueError(
                "rows must share one step and differ in attack or epsilon; append each step on its own"
            )
        stored = {identity(row) for row in self._rows}
        complete = [row for row in complete if identity(row) not in stored]
        if not complete:
            return
        for row in complete:
            check_bits(row, bits)
        if self.done:
            check_unchanged(self.path)
        self._write_bits(complete, bits)
        self._cut_torn_line()
        with open(self.path / "points.jsonl", "ab", buffering=0) as file:
            append_whole(file, _lines(complete), sync=True)
        self._rows += complete
        if self.done:
            self.finish(read_json(self.path / "DONE"))

    def keep(self, kept: Examples) -> None:
        """Keep whom the report split shows, in the place of what was kept before."""
        kept.write(self.path)

    def truncate_after(self, step: int) -> None:
        """Forget what came after ``step``, an adapter too: a run resumed from a checkpoint at ``step`` makes it again.

        Raises:
            FileNotFoundError, ValueError: the bits of a point up to ``step`` are gone, or damaged.
        """
        kept = [row for row in self._rows if row["step"] <= step]
        run = Run(self.path, self.config, pd.DataFrame(), done=False)
        for row in kept:
            try:
                run.bits(row)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{error}; {OTHERWISE}") from None
        (self.path / "DONE").unlink(missing_ok=True)
        if (self.path / "adapter").is_dir():
            disk.remove_directory(self.path / "adapter")
        if len(kept) < len(self._rows):
            disk.write_text(self.path / "points.jsonl", _lines(kept))
            self._rows = kept
        referenced = {row["bits"] for row in kept}
        for file in (self.path / "bits").glob("*.safetensors"):
            if f"bits/{file.name}" not in referenced:
                file.unlink()
        disk.remove_leftovers(self.path / "bits")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as complete, all its files in place; ``summary`` is plain JSON for people and scripts to read."""
        counted: dict[str, Any] = {"points": len(self._rows)}
        if (described := describe_log(self.path)) is not None:
            counted["log"] = described
        if (kept := Examples.read(self.path)) is not None:
            counted["examples"] = kept.digest
        counted[DIGESTS] = file_digests(self.path)
        done = sealed({**summary, "schema": SCHEMA, "run": self.key, **counted})
        disk.write_json(self.path / "DONE", done)

    def _complete(self, row: Row) -> dict[str, Any]:
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        for key, value in implied(self.config, plain.get("step")).items():
            if plain.setdefault(key, value) != value:
                raise ValueError(f"row: {key} is {plain[key]!r}, but this run has {value!r}; leave it out")
        check_row(plain, f"{self.path}, new row", self.key)
        order = [*ROW_FIELDS, *(key for key in plain if key not in ROW_FIELDS)]
        return {key: plain[key] for key in order}

    def _write_bits(self, rows: Sequence[Row], bits: Mapping[str, NDArray[np.bool_]]) -> None:
        """Bits go first, so that every line finds its bits; a file that no line names is written anew."""
        name = rows[0]["bits"]
        tensors = {key: np.packbits(np.asarray(value, dtype=bool)) for key, value in bits.items()}
        if any(row["bits"] == name for row in self._rows):
            stored, _ = load_packed(self.path / name)
            different = [
                key for key in tensors if key in stored and not np.array_equal(tensors[key], stored[key])
            ]
            if different:
                raise ValueError(
                    f"{self.path / name} holds other bits for {', '.join(different)}: this is not the model "
                    "that was evaluated at this step. Use a new bits_key for another attack"
                )
            tensors = {**stored, **tensors}
        metadata: dict[str, str] = {}
        for part in parts_of(rows[0]):
            metadata |= {f"{part.name}_examples": str(part.examples), f"{part.name}_id": part.id}
        content = pack(tensors, metadata)
        disk.write_atomically(self.path / name, lambda path: path.write_bytes(content))

    def _cut_torn_line(self) -> None:
        path = self.path / "points.jsonl"
        if not path.exists():
            return
        with open(disk.regular(path), "rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                log.warning("%s: cut a line that a killed process left unfinished", path)
                file.truncate(whole)


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read. ``points`` has one row per point and the columns of ``ROW_FIELDS``."""

    path: Path
    config: dict[str, Any]
    points: pd.DataFrame
    done: bool

    @functools.cached_property
    def key(self) -> str:
        """The key of the run, a hash of its configuration."""
        return run_key(self.config)

    @functools.cached_property
    def _resolved(self) -> Path:
        return self.path.resolve()

    def bits(self, row: "Mapping[Any, Any] | pd.Series[Any]") -> Bits:
        """Which examples a point got right.

        Args:
            row: one row of ``points``.

        Returns:
            Boolean vectors ``report/clean`` and ``report/robust`` of shape ``(examples,)``, ``select/clean``
            and ``select/robust`` of shape ``(examples_select,)``; and of what was measured elsewhere, by name,
            ``elsewhere/NAME/clean`` and, if the attack was run there too, ``elsewhere/NAME/robust``.

        Raises:
            FileNotFoundError: the file of bits is gone.
            ValueError: it is damaged, or contradicts the row.
        """
        path = (self.path / row["bits"]).resolve()
        if not path.is_relative_to(self._resolved):
            raise ValueError(f"{self.path}: bits must lie inside the run directory; got {row['bits']!r}")
        packed, metadata = load_packed(path)
        bits: Bits = {}
        for part in parts_of(row):
            count = part.examples
            stored = metadata.get(f"{part.name}_id"), metadata.get(f"{part.name}_examples")
            if stored != (part.id, str(count)):
                raise ValueError(
                    f"{path} is about other examples than the row of step {row['step']}: {metadata}"
                )
            for name, (key, field, accuracy) in part.accuracies.items():
                vector = packed.get(key)
                if vector is None or vector.dtype != np.uint8 or vector.shape != ((count + 7) // 8,):
                    raise ValueError(f"{path} has no {key} for {count} examples; it has {', '.join(packed)}")
                right = np.unpackbits(vector, count=count).astype(bool)
                if abs(right.mean() - accuracy) > 1e-6:
                    raise ValueError(
                        f"{path}: {key} gives {right.mean():.6f}, but the row of step "
                        f"{row['step']} says {field} = {accuracy}"
                    )
                bits[f"{part.name}/{name}"] = right
        return bits

    @property
    def kept_step(self) -> int:
        """The step whose weights the adapter of a finished run has: the last one, or the best by the rule of the run."""
        return int(read_json(self.path / "DONE").get("kept_step", self.points["step"].max()))

    def confirmed(self) -> list[Confirmed]:
        """What a stricter attack says of points that the run chose, by rising step; mostly nothing was asked for.

        Raises:
            FileNotFoundError, ValueError: a file of it is gone, damaged, or about other examples than the rows.
        """
        return read_confirmed(self.path, self.points)

    def examples(self) -> Examples | None:
        """Labels of the report examples, and pictures of the last point; None where they were not kept.

        Raises:
            ValueError: their file is damaged, gone, or about other examples than the rows.
        """
        done = read_json(self.path / "DONE") if self.done else {}
        stated = None if EXAMPLES in left_out(done) else done.get("examples")
        kept = Examples.read(self.path, stated)
        if kept is None or not len(self.points):
            return None
        row = self.points.iloc[-1]
        if (kept.report_id, len(kept.labels)) != (row["report_id"], row["examples"]):
            raise ValueError(
                f"{self.path / EXAMPLES} is about other examples than the rows: {kept.report_id}"
            )
        if kept.pictures is not None and kept.pictures.step not in {*self.points["step"]}:
            return replace(kept, pictures=None)  # a run that goes on will come to that point again
        return kept


def load_runs(path: str | Path) -> list[Run]:
    """Read a run directory, or every run directory below ``path``, sorted by path.

    A last line without its newline is ignored: a run may be writing it.

    Args:
        path: of the directory, or its URL, such as ``s3://bucket/runs``: what is new there is copied to a directory of this
            machine first, see :mod:`paretune.runs.storage`.

    Raises:
        ImportError: fsspec, or what it needs for the URL, is missing.
        OSError: the URL cannot be read.
        FileNotFoundError: there is no run in ``path``, or one lacks its config.json.
        ValueError: a file is damaged or newer than this library, rows or lines of the log were lost, an accuracy is not in
            [0, 1], or two directories hold the same run.
    """
    runs = [_read_run(directory) for directory in find_runs(Path(path))]
    if not runs:
        at_hand = as_url(path) or Path(path).is_dir()
        state = "has no run directory in it" if at_hand else "is not a directory"
        raise FileNotFoundError(f"{path} {state}: a run directory contains config.json and points.jsonl")
    _check_distinct(runs)
    return runs


def load_points(path: str | Path) -> pd.DataFrame:
    """One tidy table of all points below ``path``: the columns of ``ROW_FIELDS`` and ``path``, the run directory.

    Runs that measured examples elsewhere, such as other domains, have columns of these too: ``clean_in_NAME`` of each, and
    ``clean_elsewhere`` of all of them taken together; see ``paretune.runs.rows.with_elsewhere``.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_runs`.
    """
    runs = load_runs(path)
    tables = [run.points.assign(path=str(run.path)) for run in runs]
    filled = [table for table in tables if len(table)]
    return pd.concat(filled or tables[:1], ignore_index=True)


def as_runs(runs: str | Path | Run | pd.DataFrame | Iterable[Run | str | Path]) -> list[Run]:
    """Runs from a path, from one run, from several of either, or from points: rows of :func:`load_points`.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_runs`, over all of them.
        ValueError: the points have no ``path`` or ``run``, or name a point that its run does not have.
    """
    if isinstance(runs, pd.DataFrame):
        return _runs_of(runs)
    if isinstance(runs, Run):
        return [runs]
    if isinstance(runs, str | Path):
        return load_runs(runs)
    every = [run for item in runs for run in as_runs(item)]
    _check_distinct(every)
    return every


def _check_distinct(runs: Iterable[Run]) -> None:
    """Raise ValueError if two are the same run, which would count twice."""
    seen: dict[str, Path] = {}
    for run in runs:
        if run.key in seen:
            same = run.path.resolve() == seen[run.key].resolve()
            raise ValueError(
                f"{run.path} is named twice; name it once"
                if same
                else f"{run.path} and {seen[run.key]} are copies of one run; remove one of them"
            )
        seen[run.key] = run.path


def _runs_of(points: pd.DataFrame) -> list[Run]:
    """The runs that ``points`` are of, with these points only."""
    if missing := {"path", *_POINT}.difference(points.columns):
        raise ValueError(
            f"points lack {', '.join(sorted(missing))}; give rows of paretune.load_points, or rank other tables with "
            "paretune.analyze"
        )
    runs = []
    for path, rows in points.groupby("path", sort=False):
        (run,) = load_runs(str(path))
        wanted = set(rows[_POINT].itertuples(index=False, name=None))
        kept = [point in wanted for point in run.points[_POINT].itertuples(index=False, name=None)]
        if sum(kept) < len(rows):
            raise ValueError(f"points hold {len(rows)} rows of {path}, which has {sum(kept)} of these")
        runs.append(dataclasses.replace(run, points=run.points[kept].reset_index(drop=True)))
    return runs


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def find_runs(path: Path) -> Iterator[Path]:
    """Run directories below ``path``, itself included, without looking inside them; damaged ones too.

    Trials of a search for learning rates are runs only where ``path`` is the directory of the search, or one of them. Of a
    URL those of a copy on this machine, see :func:`~paretune.runs.storage.local_copy`.
    """
    path = local_copy(path)
    for directory, names, files in os.walk(path):
        if SEARCH in files and Path(directory) != path:
            names.clear()
            continue
        names.sort()
        marks = {"config.json", "points.jsonl", "DONE"}.intersection(files)
        if marks - {"config.json"} and "bits" in names:
            marks.add("bits")
        if len(marks) > 1 or ("config.json" in marks and _has_schema(Path(directory) / "config.json")):
            names.clear()
            yield Path(directory)


def _has_schema(path: Path) -> bool:
    """Whether a config.json is that of a run that has just begun; those of models carry no schema."""
    try:
        return "schema" in read_json(path)
    except (ValueError, OSError):  # half a file, or gone since it was listed
        return False


def _read_run(path: Path) -> Run:
    config = read_config(path)
    key = run_key(config)
    stated = read_stated(path, key)
    rows = sorted((row for _, row in read_rows(path, config)), key=lambda row: row["step"])
    if read_stated(path, key) != stated:
        return _read_run(path)  # the run went on meanwhile, or was started over
    check_none_lost(path, stated, (row["step"] for row in rows))
    check_log(path, stated)
    points = (
        pd.DataFrame([with_elsewhere(row) for row in rows]) if rows else pd.DataFrame(columns=[*ROW_FIELDS])
    )
    return Run(path, config, points, stated is not None and stated.done)
