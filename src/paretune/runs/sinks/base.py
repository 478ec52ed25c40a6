"""What a sink is, and how the rows of a run reach it.

Rows are read from ``points.jsonl`` and ``log.jsonl`` of the run directory, after the checkpoint that covers them is on disk.
So a sink receives exactly the rows of the files, never one that a resumed run takes back, and one that is added later
receives those from before it too. ``sinks.json`` remembers how far each one is.
"""

import abc
import contextlib
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from paretune._values import Value
from paretune.runs import disk
from paretune.runs.lines import Tail
from paretune.runs.rows import elsewhere_of, read_config, run_key

log = logging.getLogger(__name__)

SENT = "sinks.json"  # in a run directory: how far each sink is


@dataclass(frozen=True)
class StepRows:
    """What is known of one training step: its line of ``log.jsonl`` and its lines of ``points.jsonl``, if it has them."""

    step: int
    log: Mapping[str, Any] | None
    points: tuple[Mapping[str, Any], ...]

    def values(self) -> dict[str, float]:
        """The numbers under the names that dashboards show.

        ``train/loss``, ``train/accuracy`` and ``train/epsilon``; at an evaluation point ``report/clean``, ``select/clean``,
        ``report/robust/ATTACK`` and ``select/robust/ATTACK`` for each attack, ``elsewhere/NAME/clean``, and ``cost/…``.
        """
        values = {}
        for key, value in (self.log or {}).items():
            if key != "step" and isinstance(value, int | float):
                values[f"train/{key}"] = float(value)
        for point in self.points:
            attack = re.sub(r"[^A-Za-z0-9.]+", "-", str(point["attack"])).strip("-")
            values |= {
                "report/clean": float(point["clean"]),
                "select/clean": float(point["clean_select"]),
                f"report/robust/{attack}": float(point["robust"]),
                f"select/robust/{attack}": float(point["robust_select"]),
            }
            for name, place in elsewhere_of(point).items():
                values[f"elsewhere/{name}/clean"] = float(place["clean"])
            for key in ("epoch", "train_seconds", "cpu_seconds", "peak_memory_bytes"):
                values[f"cost/{key}"] = float(point[key])
        return values


@dataclass(frozen=True)
class SinkRun:
    """The run that a sink is opened for.

    Args:
        path: the run directory.
        key: hash of the configuration; the same run has it on every machine and after every restart.
        config: content of ``config.json``.
        sent: the last step that this sink has received; 0 at first.
    """

    path: Path
    key: str
    config: Mapping[str, Any]
    sent: int

    @property
    def name(self) -> str:
        """What people call the run: the name of its directory."""
        return self.path.resolve().name

    def settings(self) -> dict[str, str | int | float | bool]:
        """``config`` without nesting: ``objective.inner.steps``; lists are JSON."""
        return dict(_flat(self.config))


class Receiver(Protocol):
    """An opened sink."""

    def send(self, steps: Sequence[StepRows]) -> None:
        """Take the next steps, in ascending order, each one once."""

    def close(self, *, done: bool) -> None:
        """No more will come from this process; ``done`` if the run is complete."""


@dataclass(frozen=True)
class Sink(Value, abc.ABC):
    """Base of the sinks that come with paretune: a configuration that can be opened.

    Raises:
        ImportError: the package is not installed; the message has the line that installs it.
    """

    PACKAGE: ClassVar[str]
    INSTALL: ClassVar[str]

    def __post_init__(self) -> None:
        if importlib.util.find_spec(self.PACKAGE) is None:
            raise ImportError(f"{type(self).__name__}() needs {self.PACKAGE}: {self.INSTALL}")

    @abc.abstractmethod
    def open(self, run: SinkRun) -> Receiver:
        """Begin to receive ``run``, or go on with it where it was left."""


class Openable(Protocol):
    """What :func:`forwarding` asks of a sink."""

    def open(self, run: SinkRun) -> Receiver:
        """As :meth:`Sink.open`."""


@contextlib.contextmanager
def forwarding(path: Path, sinks: Iterable[Openable]) -> Iterator[Callable[[], None]]:
    """Open ``sinks`` for the run in ``path``; the function that is yielded passes on the rows that they do not have yet.

    A sink that fails is closed, named in the log, and receives nothing more from this process. What it lacks it gets when
    the run is resumed or started again with it.
    """
    feeds = [_Feed(path, sink) for sink in sinks]

    def forward() -> None:
        for feed in feeds:
            feed.forward()

    forward()
    done = False
    try:
        yield forward
        done = True
    finally:
        for feed in feeds:
            feed.close(done=done)


def backfill(path: Path, sinks: Iterable[Openable]) -> None:
    """Pass on what ``sinks`` lack of the finished run in ``path``."""
    with forwarding(path, sinks):
        pass


class _Feed:
    """One sink of one run."""

    def __init__(self, path: Path, sink: Openable) -> None:
        self.path, self.name = path, repr(sink)
        self.tails = Tail(path / "log.jsonl"), Tail(path / "points.jsonl")
        self.receiver: Receiver | None = None
        with self._guarded("opening it"):
            self.sent = int(_sent(path).get(self.name, 0))
            config = read_config(path)
            self.receiver = sink.open(SinkRun(path, run_key(config), config, self.sent))

    def forward(self) -> None:
        steps = [rows for rows in self._new() if rows.step > self.sent] if self.receiver else []
        if steps and self.receiver:
            with self._guarded(f"steps {steps[0].step} to {steps[-1].step}"):
                self.receiver.send(steps)
                self.sent = steps[-1].step
                disk.write_json(self.path / SENT, {**_sent(self.path), self.name: self.sent})

    def close(self, *, done: bool) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            with self._guarded("closing it"):
                receiver.close(done=done)

    def _new(self) -> list[StepRows]:
        lines = [tail.read().rows for tail in self.tails]
        logged = {int(row["step"]): row for row in lines[0]}
        points: dict[int, list[Mapping[str, Any]]] = {}
        for row in lines[1]:
            points.setdefault(int(row["step"]), []).append(row)
        return [
            StepRows(step, logged.get(step), tuple(points.get(step, ())))
            for step in sorted({*logged, *points})
        ]

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a dashboard raises, training goes on
            log.error(
                "%s: the sink %s failed (%s: %s: %s) and receives nothing more; training goes on. "
                "Start the run again with it to pass on what it lacks",
                self.path.name,
                self.name,
                doing,
                type(error).__name__,
                error,
            )
            self.close(done=False)


def _sent(path: Path) -> dict[str, int]:
    file = path / SENT
    sent = json.loads(disk.regular(file).read_text(encoding="utf-8")) if file.exists() else {}
    return sent if isinstance(sent, dict) else {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            yield f"{prefix}{key}", value if plain else json.dumps(value, ensure_ascii=False)
