"""The files of a run directory: what a row and its bits must look like, and how they are read."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from paretune.runs.disk import regular
from paretune.runs.naming import as_called

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SCHEMA = 1
CHECKPOINT = "checkpoint.safetensors"  # of an unfinished run; its metadata has "progress" as JSON
TASKS = "tasks.json"  # of a run of several tasks, beside their directories: what it is, as config.json is of one task
SEARCH = "lr-search.json"  # marks a directory of trials, and says what came of them
RACE = "race.json"  # of a race, beside the directories of its runs
BEST = "best.safetensors"  # of an unfinished run: what it would end with, where that is not its last step
OTHERWISE = "restore it from a copy, or start the run over with resume=False (--resume false)"
ROW_FIELDS: dict[str, type] = {
    "schema": int,
    "run": str,  # key of the run
    "task": str,
    "strategy": str,  # display name, "LoRA"
    "config": str,  # the call that makes the strategy, "LoRA(rank=4)"
    "seed": int,
    "step": int,
    "epoch": float,
    "attack": str,
    "threat": str,
    "epsilon": float,  # fraction of the pixel range
    "clean": float,  # accuracies are fractions; these two on the report split …
    "robust": float,
    "clean_select": float,  # … and these on the select split
    "robust_select": float,
    "examples": int,
    "examples_select": int,
    "report_id": str,  # fingerprints: which examples the accuracies are about
    "select_id": str,
    "bits": str,  # file inside the run directory
    "bits_key": str,
    "trainable_parameters": int,
    "train_seconds": float,
    "cpu_seconds": float,
    "peak_memory_bytes": int,
    "precision": str,
    "versions": dict,
}
# A row may say, under "elsewhere", what was measured on other examples than those of the data set: by name their number
# "examples", their fingerprint "id", the accuracy "clean", and under the attack of the row "robust" if that was measured.
# Of what a shift made also its call, "shift", and whether the examples are "paired" with the first ones of the report split.
_ELSEWHERE: dict[str, type] = {"examples": int, "id": str, "clean": float}
_MAYBE_ELSEWHERE: dict[str, type] = {"robust": float, "shift": str, "paired": bool}
_LARGEST = 2**63 - 1  # of whole numbers in a table
_DTYPES = {"|u1": "U8", "<i8": "I64", "<f4": "F32"}  # of NumPy, and their names in a safetensors file
_ACCURACIES = ("clean", "robust", "clean_select", "robust_select")
_SPLITS = (("report", "", "examples", "report_id"), ("select", "_select", "examples_select", "select_id"))

Bits = dict[str, NDArray[np.bool_]]
Row = Mapping[str, Any]


def run_key(config: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of ``config`` as canonical JSON: sorted, no spaces."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; NaN, Infinity and numbers beyond what a float holds are refused, as JSON has none.

    Raises:
        ValueError: the file holds something else; it is named.
    """
    content = regular(path).read_bytes()
    try:
        value = json.loads(content, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"{path} is not JSON that anybody wrote: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"numbers must be finite; got {text[:20]}")
    return number


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in ``path``."""
    file = path / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} is missing; copy run directories whole, or remove this one"
        ) from None
    if config.get("schema") != SCHEMA:
        raise ValueError(
            f"{file} has schema {config.get('schema')!r}; this library reads {SCHEMA}. "
            "Upgrade paretune, or point to a run directory"
        )
    return config


class Stated(NamedTuple):
    """How many rows a run has at least, by DONE or by the checkpoint of an unfinished run."""

    file: Path
    step: float  # the rows up to this one are counted
    points: int
    log: Any = None  # of a finished run: lines and SHA-256 of log.jsonl; None of one without

    @property
    def done(self) -> bool:
        """Whether nothing is to come."""
        return self.file.name == "DONE"


def read_stated(path: Path, key: str) -> Stated | None:
    """What the run says of its rows, None if nothing yet. Read it before the rows: a run under way adds to both."""
    try:
        file = path / "DONE"
        content = read_json(file)
        step, points, whose, log = math.inf, content.get("points"), content.get("run"), content.get("log")
        log = None if "log.jsonl" in left_out(content) else log
    except FileNotFoundError:
        file = path / CHECKPOINT
        try:
            with safe_open(regular(file), framework="numpy") as opened:
                content = json.loads((opened.metadata() or {})["progress"])
            step, points, whose, log = content["step"], content.get("points", 0), key, None
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {file} is damaged ({error}); delete it to train this run from its start"
            ) from None
    except ValueError as error:
        raise ValueError(f"{error}; {OTHERWISE}") from None
    if not isinstance(points, int) or not isinstance(step, int | float) or whose != key:
        raise ValueError(f"{file} is damaged or of another run: {json.dumps(content)[:200]}; {OTHERWISE}")
    return Stated(file, step, points, log)


def left_out(done: Mapping[str, Any]) -> tuple[str, ...]:
    """What an exported run says in ``DONE`` that it was written without, by the names of the files and directories."""
    names = done.get("left_out")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def training_of(path: Path) -> Path:
    """The directory with the log and the checkpoint of the run in ``path``: the one above for one of several tasks."""
    above = path.absolute().parent
    return above if (above / TASKS).exists() else path


def read_findings(path: Path) -> list[dict[str, Any]]:
    """What training noticed in the run in ``path`` so far: of each its ``step`` and the ``finding`` in words."""
    try:
        content = read_json(path / "DONE")
    except FileNotFoundError:
        try:
            with safe_open(regular(training_of(path) / CHECKPOINT), framework="numpy") as opened:
                content = json.loads((opened.metadata() or {})["progress"])
        except FileNotFoundError:
            return []
    findings: list[dict[str, Any]] = content.get("findings", [])
    return findings


def check_none_lost(path: Path, stated: Stated | None, steps: Iterable[int]) -> None:
    """Raise ValueError if there are fewer rows of these ``steps`` than ``stated``."""
    if stated is None:
        return
    rows = sum(step <= stated.step for step in steps)
    if rows < stated.points:
        upto = "" if stated.done else f" up to step {stated.step}"
        raise ValueError(
            f"{path / 'points.jsonl'} has {rows} rows{upto}, but {stated.file.name} says that there are "
            f"{stated.points}: rows were lost. The file must be whole: {OTHERWISE}"
        )


def describe_log(path: Path) -> dict[str, Any] | None:
    """What DONE says of log.jsonl: how many lines it has, and their SHA-256; None where there is none."""
    try:
        content = regular(path / "log.jsonl").read_bytes()
    except FileNotFoundError:
        return None
    return {"lines": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}


def check_log(path: Path, stated: Stated | None) -> None:
    """Raise ValueError if log.jsonl of a finished run is not what ``stated`` says of it."""
    if stated is None or stated.log is None:
        return
    present = describe_log(path)
    if present != stated.log:
        lines = present["lines"] if present else 0
        count = stated.log.get("lines") if isinstance(stated.log, dict) else None
        what = f"has {lines} lines, but DONE says that there are {count}"
        if lines == count:
            what = f"has the {lines} lines that DONE says, but not those that were written"
        raise ValueError(f"{path / 'log.jsonl'} {what}. The file must be whole: {OTHERWISE}")


def implied(config: Mapping[str, Any], step: Any) -> dict[str, Any]:
    """The fields of a row that follow from the configuration of its run and from its step."""
    fields = {
        "schema": SCHEMA,
        "run": run_key(config),
        "task": config.get("task"),
        "strategy": config.get("strategy"),
        "config": config.get("strategy_config"),
        "seed": config.get("seed"),
    }
    return fields | _of_step(step)


def _of_step(step: Any) -> dict[str, Any]:
    return {"bits": f"bits/step-{step:06d}.safetensors"} if isinstance(step, int) else {}


def read_rows(path: Path, config: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of points.jsonl, checked."""
    file = path / "points.jsonl"
    if not file.exists():
        return []
    *lines, torn = regular(file).read_bytes().split(b"\n")
    if torn:
        log.info("%s: the last line is unfinished and was left out", file)
    rows: list[tuple[int, dict[str, Any]]] = []
    of_run = implied(config, None)
    key = of_run["run"]
    seen: dict[tuple[Any, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}). The file is damaged: {OTHERWISE}") from None
        check_row(row, where, key)
        row["attack"] = as_called(row["attack"])
        for field, value in (of_run | _of_step(row["step"])).items():
            if row[field] != value:
                raise ValueError(
                    f"{where} says {field} = {row[field]!r}, but its run makes that {value!r}. It is damaged: {OTHERWISE}"
                )
        if identity(row) in seen:
            first = seen[identity(row)]
            same = line == lines[first - 1]
            raise ValueError(
                f"{where} repeats the point of line {first}; "
                + ("remove one of the two lines" if same else f"the file is damaged: {OTHERWISE}")
            )
        seen[identity(row)] = number
        rows.append((number, row))
    return rows


def check_row(row: Any, where: str, key: str) -> None:
    """Raise ValueError unless ``row`` is a point of the run that ``key`` identifies."""
    if not isinstance(row, dict) or (missing := [field for field in ROW_FIELDS if field not in row]):
        raise ValueError(f"{where} lacks {', '.join(missing) if isinstance(row, dict) else 'all fields'}")
    if row["schema"] != SCHEMA:
        raise ValueError(
            f"{where} has schema {row['schema']!r}; this library reads {SCHEMA}. Upgrade paretune"
        )
    for field, kind in ROW_FIELDS.items():
        value = row[field]
        if not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool):
            raise ValueError(f"{where} (step {row['step']}): {field} must be {kind.__name__}; got {value!r}")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{where}: {field} has more digits than any {field} can have")
        if isinstance(value, int | float) and field != "seed" and not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{where} (step {row['step']}): {field} must be finite and not negative; got {value}"
            )
    for field in _ACCURACIES:
        if row[field] > 1:
            raise ValueError(
                f"{where} (step {row['step']}): {field} is a fraction in [0, 1]; got {row[field]}"
            )
    _check_elsewhere(row, where)
    if row["epsilon"] == 0 or (row["threat"] == "Linf" and row["epsilon"] > 1):
        raise ValueError(
            f"{where}: epsilon is a fraction of the pixel range, 8/255 and not 8; got {row['epsilon']}"
        )
    if row["run"] != key:
        raise ValueError(
            f"{where} belongs to run {row['run']}, but config.json makes {key}: files of two runs mixed"
        )


def identity(row: Row) -> tuple[Any, ...]:
    """What no two rows of a run have in common."""
    return row["step"], row["attack"], row["epsilon"]


def check_bits(row: Row, bits: Mapping[str, NDArray[np.bool_]]) -> None:
    """Bits have the sizes and the means that the row states, and robust implies clean."""
    for part in parts_of(row):
        vectors = {}
        for name, (key, field, accuracy) in part.accuracies.items():
            if key not in bits:
                raise ValueError(f"bits lacks {key!r}; got {', '.join(bits)}")
            vector = vectors[name] = np.asarray(bits[key])
            if vector.dtype != bool or vector.shape != (part.examples,) or vector.size == 0:
                raise ValueError(
                    f"bits[{key!r}] must be a boolean vector of {part.counted} = {part.examples} > 0 values; "
                    f"got {vector.dtype}, shape {vector.shape}"
                )
            if abs(vector.mean() - accuracy) > 1e-6:
                raise ValueError(f"{field} is {accuracy}, but {key} has the mean {vector.mean()}")
        if (vectors.get("robust", vectors["clean"]) & ~vectors["clean"]).any():
            raise ValueError(
                f"{part.name}/{row['bits_key']} is true where {part.name}/clean is not; robust implies clean"
            )


class Part(NamedTuple):
    """Some of the examples that a row is about.

    Args:
        name: of them in the file of bits.
        examples: how many there are.
        counted: what the row calls that number.
        id: their fingerprint.
        accuracies: by ``clean`` and ``robust``: the key of the bits, what the row calls their mean, and the mean.
    """

    name: str
    examples: int
    counted: str
    id: str
    accuracies: dict[str, tuple[str, str, float]]


def parts_of(row: "Row | pd.Series[Any]") -> Iterator[Part]:
    """The report and the select split, and what is elsewhere."""
    keys = {"clean": "clean", "robust": row["bits_key"]}
    for split, suffix, counted, fingerprint in _SPLITS:
        accuracies = {
            name: (f"{split}/{key}", name + suffix, row[name + suffix]) for name, key in keys.items()
        }
        yield Part(split, int(row[counted]), counted, row[fingerprint], accuracies)
    for where, place in elsewhere_of(row).items():
        accuracies = {
            name: (f"elsewhere/{where}/{key}", f"{name}_in_{where}", place[name])
            for name, key in keys.items()
            if name in place
        }
        counted = f"examples_in_{where}"
        yield Part(f"elsewhere/{where}", place["examples"], counted, place["id"], accuracies)


def elsewhere_of(row: "Row | pd.Series[Any]") -> dict[str, dict[str, Any]]:
    """What a row says of examples elsewhere, by their name; nothing where it has none, as in a table with other runs."""
    places = row.get("elsewhere")
    return places if isinstance(places, dict) else {}


def with_elsewhere(row: Row) -> dict[str, Any]:
    """The row with columns of what is elsewhere.

    Of each NAME ``clean_in_NAME``, ``robust_in_NAME`` if measured, and ``examples_in_NAME``; of all examples that are
    elsewhere taken together ``clean_elsewhere``, ``robust_elsewhere`` and ``examples_elsewhere``.
    """
    columns: dict[str, Any] = {}
    places = elsewhere_of(row)
    total = sum(place["examples"] for place in places.values())
    for name in ("clean", "robust"):
        if places and all(name in place for place in places.values()):
            columns |= {f"{name}_in_{where}": place[name] for where, place in places.items()}
            columns[f"{name}_elsewhere"] = (
                sum(place[name] * place["examples"] for place in places.values()) / total
            )
    counts = {f"examples_in_{where}": place["examples"] for where, place in places.items()}
    return {**row, **columns, **counts, **({"examples_elsewhere": total} if places else {})}


def _check_elsewhere(row: Row, where: str) -> None:
    places = row.get("elsewhere", {})
    for name, entry in places.items() if isinstance(places, dict) else [("", places)]:
        place = f"{where} (step {row['step']}): elsewhere"
        known = _ELSEWHERE | _MAYBE_ELSEWHERE
        if not isinstance(entry, dict) or not {*_ELSEWHERE} <= {*entry} <= {*known}:
            raise ValueError(
                f"{place} must have, by name, {', '.join(_ELSEWHERE)} and maybe {', '.join(_MAYBE_ELSEWHERE)}; got {name}: "
                f"{entry!r:.200}"
            )
        wanted = {field: known[field] for field in entry}
        for field, kind in wanted.items():
            value = entry[field]
            if (kind is not bool and isinstance(value, bool)) or not isinstance(
                value, int | float if kind is float else kind
            ):
                raise ValueError(f"{place}: {field} of {name} must be {kind.__name__}; got {value!r}")
            if kind is float and not 0 <= entry[field] <= 1:
                raise ValueError(f"{place}: {field} of {name} is a fraction in [0, 1]; got {value}")
        if not 0 < entry["examples"] <= _LARGEST:
            raise ValueError(
                f"{place}: examples of {name} must be a positive number; got {entry['examples']}"
            )


def load_packed(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Arrays of a file that :func:`pack` made, and what it says of them; bits are eight examples a byte."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; copy run directories whole")
    try:
        with safe_open(regular(path), framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def pack(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of bytes, int64 and float32.

    The safetensors library orders metadata at random; with the order fixed, a run that is repeated or resumed
    gives the same bytes. Format: https://huggingface.co/docs/safetensors/index#format
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    values = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    end = 0
    for name, value in values.items():
        start, end = end, end + value.nbytes
        header[name] = {
            "dtype": _DTYPES[value.dtype.str],
            "shape": [*value.shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(value.tobytes() for value in values.values())


def differences(stored: Any, given: Any, name: str = "") -> str:
    """The fields that differ, by dotted name: ``seed: 0 there, 1 here``."""
    if isinstance(stored, dict) and isinstance(given, dict):
        keys = sorted({*stored, *given})
        parts = [
            differences(stored.get(key, _ABSENT), given.get(key, _ABSENT), f"{name}.{key}" if name else key)
            for key in keys
            if key not in stored
            or key not in given
            or run_key({"": stored[key]}) != run_key({"": given[key]})
        ]
        return "; ".join(parts)
    return f"{name}: {stored!r} there, {given!r} here"


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()
