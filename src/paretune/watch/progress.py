"""How far the runs of a directory are, read from their files alone."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paretune.runs.lines import Tail
from paretune.runs.rows import (
    Stated,
    check_log,
    check_none_lost,
    check_row,
    read_config,
    read_json,
    read_stated,
    run_key,
    training_of,
)
from paretune.runs.store import find_runs

_SWEEP = "sweep.json"
MOST = 200  # runs that are listed
_INTEREST = ("damaged", "running", "waiting", "done")
_KEPT = ("step", "clean_select", "robust_select", "train_seconds")  # of a row
_SAMPLES = 40  # looks at a run over which its speed is measured


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """One run.

    Args:
        name: its path below the directory that is watched.
        state: ``waiting`` has not begun, ``damaged`` cannot be read, see ``problem``.
        strategy: as the run spells it.
        task: name of the data.
        seed: of the run.
        step: optimizer steps done.
        total: optimizer steps of the run; None if it does not say.
        epsilon: strength of the training attack, as a fraction of the pixel range.
        loss: of the last step.
        clean: accuracy on the select split at the last evaluation point.
        robust: the same under the attack that leaves the least.
        points: evaluation points so far.
        seconds_left: until the run is complete, if its speed is known.
        quiet_seconds: since one of its files changed.
        problem: why it cannot be read.
    """

    name: str
    state: Literal["waiting", "running", "done", "damaged"]
    strategy: str = ""
    task: str = ""
    seed: int | None = None
    step: int = 0
    total: int | None = None
    epsilon: float | None = None
    loss: float | None = None
    clean: float | None = None
    robust: float | None = None
    points: int = 0
    seconds_left: float | None = None
    quiet_seconds: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class SweepProgress:
    """All runs, in the order of their names, those that wait last.

    Args:
        runs: one each.
        seconds_left: until the last one is complete, if the speed is known.
    """

    runs: tuple[RunProgress, ...]
    seconds_left: float | None

    def to_dict(self, most: int = MOST) -> dict[str, Any]:
        """Plain values that are JSON: all numbers are finite.

        Args:
            most: runs that are listed; of more, those that are damaged, running, waiting and done, in this order.
        """
        listed = self.runs
        if len(listed) > most:
            kept = sorted(range(len(listed)), key=lambda place: _INTEREST.index(listed[place].state))[:most]
            listed = tuple(listed[place] for place in sorted(kept))
        totals = [run.total for run in self.runs if run.total]
        mean = sum(totals) / len(totals) if totals else 0.0
        return {
            "runs": [vars(run) for run in listed],
            "counts": {state: sum(run.state == state for run in self.runs) for state in _INTEREST},
            "measured": any(run.points for run in self.runs),
            "steps": sum((run.total or mean) if run.state == "done" else run.step for run in self.runs),
            "steps_total": sum(run.total or mean for run in self.runs) if totals else None,
            "seconds_left": self.seconds_left,
        }


class Watcher:
    """Looks at a directory again and again, and reads only what is new."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._watched: dict[Path, _Watched] = {}

    def look(self) -> SweepProgress:
        """How far everything is now."""
        paths = [*find_runs(self.directory)]
        self._watched = {path: self._watched.get(path) or _Watched(path) for path in paths}
        looks = [watched.look(self._name(path)) for path, watched in self._watched.items()]
        begun = [run for run in looks if run is not None]
        names = {run.name for run in begun}
        announced, problem = _announced(self.directory)
        waiting = [
            RunProgress(
                name=name,
                state="waiting",
                strategy=str(run.get("strategy", "")),
                seed=_whole(run.get("seed")),
            )
            for name, run in announced.items()
            if name not in names
        ]
        left = self._seconds_left(begun, len(waiting))
        damaged = [] if problem is None else [RunProgress(name=_SWEEP, state="damaged", problem=problem)]
        return SweepProgress((*begun, *waiting, *damaged), left)

    def _name(self, path: Path) -> str:
        relative = path.relative_to(self.directory)
        return path.resolve().name if relative == Path() else relative.as_posix()

    def _seconds_left(self, begun: Iterable[RunProgress], waiting: int) -> float | None:
        """Of the sweep: the steps that are left at the mean speed, over as many runs at a time as there are now."""
        speeds = [speed for run in self._watched.values() if (speed := run.seconds_per_step()) is not None]
        running = [run for run in begun if run.state == "running"]
        totals = [run.total for run in begun if run.total]
        if not running or not speeds or not totals:
            return None
        mean = sum(speeds) / len(speeds)
        rest = sum(
            run.seconds_left if run.seconds_left is not None else mean * ((run.total or 0) - run.step)
            for run in running
        )
        rest += waiting * mean * sum(totals) / len(totals)
        longest = max(run.seconds_left or 0.0 for run in running)
        return _number(max(longest, rest / len(running)))


_Files = tuple[tuple[str, int, int, int], ...]  # of each its name, inode, time and size


class _Watched:
    """One run directory, as far as it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.log, self.points = Tail(training_of(self.path) / "log.jsonl"), Tail(self.path / "points.jsonl")
        self.last: dict[str, Any] = {}  # line of the log
        self.whole: Stated | None = None  # what the log was found to be
        self.measured: dict[int, list[dict[str, Any]]] = {}
        self.done: tuple[_Files, RunProgress, float] | None = (
            None  # its files, what was told, and when they changed
        )
        self.samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)  # (when, step)

    def look(self, name: str) -> RunProgress | None:
        """How far it is now; None if it has gone. A run that is done and whose files are as they were is not read again."""
        seen = self._seen()
        if self.done is not None and self.done[0] == seen:
            return replace(self.done[1], quiet_seconds=max(0.0, time.time() - self.done[2]))
        self.done = None
        try:
            config = read_config(self.path)
            stated = read_stated(self.path, run_key(config))
            self._read()
            if read_stated(self.path, run_key(config)) == stated:  # else it went on meanwhile, or began again
                steps = (step for step, rows in self.measured.items() for _ in rows)
                check_none_lost(self.path, stated, steps)
                if stated != self.whole:  # once, as it reads all of it
                    check_log(self.path, stated)
                    self.whole = stated
            step = max([self.last.get("step", 0), *self.measured])
            done = stated is not None and stated.done
            if not done and (not self.samples or self.samples[-1][1] != step):
                self.samples.append((time.monotonic(), step))
            rows = self.measured[max(self.measured)] if self.measured else []
            total, seed = (_whole(config.get(name)) for name in ("steps", "seed"))
            for field, number in (("steps", total), ("seed", seed)):
                if number is None and config.get(field) is not None:
                    raise ValueError(f"{self.path / 'config.json'}: {field} must be a whole number")
            speed = self.seconds_per_step()
            left = speed * (total - step) if total and speed is not None and not done else None
            changed = self._changed()
            progress = RunProgress(
                name=name,
                state="done" if done else "running",
                strategy=str(config["strategy"]),
                task=str(config["task"]),
                seed=seed,
                step=step,
                total=total,
                epsilon=_number(self.last.get("epsilon")),
                loss=_number(self.last.get("loss")),
                clean=rows[0]["clean_select"] if rows else None,
                robust=min(row["robust_select"] for row in rows) if rows else None,
                points=len(self.measured),
                seconds_left=_number(left),
                quiet_seconds=max(0.0, time.time() - changed),
            )
            if done:
                self.done = (seen, progress, changed)
            return progress
        except Exception as error:  # whatever is in its files, the others are shown
            self._forget()  # so that the next look finds the same, or that it was mended
            if not (self.path / "config.json").exists():
                return None
            return RunProgress(name=name, state="damaged", problem=f"{type(error).__name__}: {error}")

    def seconds_per_step(self) -> float | None:
        """As observed, evaluation included; until two steps were seen, what the run says, which leaves evaluation out."""
        if len(self.samples) > 1 and self.samples[-1][1] > self.samples[0][1]:
            (start, first), (_, last) = self.samples[0], self.samples[-1]
            end = time.monotonic() if not (self.path / "DONE").exists() else self.samples[-1][0]
            return (end - start) / (last - first)
        if self.measured:
            row = self.measured[max(self.measured)][0]
            return float(row["train_seconds"]) / max(1, int(row["step"]))
        return None

    def _read(self) -> None:
        log, points = self.log.read(), self.points.read()
        if log.restarted or points.restarted:
            # The run was resumed: its files were cut to the last checkpoint.
            self._forget()
            log, points = self.log.read(), self.points.read()
        if log.rows:
            self.last = log.rows[-1]
            if _whole(self.last.get("step", 0)) is None:
                raise ValueError(f"{self.path / 'log.jsonl'}: step must be a whole number")
        for row in points.rows:
            check_row(row, str(self.path / "points.jsonl"), str(row.get("run")))
            self.measured.setdefault(row["step"], []).append({name: row[name] for name in _KEPT})

    def _seen(self) -> "_Files":
        """What tells whether a file of the run changed."""
        log = training_of(self.path) / "log.jsonl"
        files = (self.path / "config.json", self.path / "points.jsonl", self.path / "DONE", log)
        seen = []
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                seen.append((file.name, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(seen)

    def _changed(self) -> float:
        """When a file of the run changed last, in seconds since 1970."""
        times = [(self.path / "config.json").stat().st_mtime]
        for name in ("log.jsonl", "points.jsonl", "DONE"):
            with contextlib.suppress(FileNotFoundError):
                times.append((self.path / name).stat().st_mtime)
        return max(times)


def _announced(directory: Path) -> tuple[dict[str, dict[str, Any]], str | None]:
    """The runs that sweeps in this directory named before they began, and why that cannot be read."""
    try:
        runs = read_json(directory / _SWEEP).get("runs")
    except OSError:
        return {}, None
    except ValueError as error:
        return {}, str(error)
    if not isinstance(runs, dict):
        return {}, None
    return {str(name): run for name, run in runs.items() if isinstance(run, dict)}, None


def _whole(value: Any) -> int | None:
    """A whole number as long as those of a step, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def _number(value: Any) -> float | None:
    """A finite number, or None: the loss of a run that diverged is NaN."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None
