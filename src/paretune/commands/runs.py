"""``paretune runs``: what there is in a directory of runs, what differs, all of it as a table, and away with it."""

import json
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.commands._printing import cell, print_table, shortened
from paretune.commands._selecting import Selecting, read_runs

if TYPE_CHECKING:
    from paretune.runs.store import Run

# What training, its dashboards and the search for its learning rate write into a run directory, beside the files of a run.
_OURS = {"config.json", "bits", "adapter", "tensorboard", "lr-search", "confirmed", "confirming", "weights"}


@dataclass(frozen=True)
class List(Selecting):
    """List the runs in a directory: what they are, their accuracies on the report split, and their age and size.

    The accuracies are those of the step whose model a finished run has kept, which ``keep`` says, and of the last one so far
    of others. A run with several attacks has a line for each. Age is the time since something in the run changed.

    Args:
        runs: run directories, or directories of them.
        json: print JSON instead, with dates in seconds since 1970 and sizes in bytes.
    """

    runs: list[str]
    json: bool = False

    def __call__(self) -> None:
        """Print the table. A damaged run is a line of it."""
        from paretune.report.runs import run_names

        runs, damaged = read_runs(self.runs)
        chosen = self.select(runs)
        rows = [_summary(run) for run in chosen]
        if self.json:
            print(json.dumps({"runs": rows, "damaged": damaged}, indent=2))
            return
        print_table(
            [
                "run",
                "strategy",
                "task",
                "seed",
                "attack",
                "step",
                "clean",
                "robust",
                "finished",
                "age",
                "size",
            ],
            [line for name, row in zip(run_names(chosen), rows, strict=True) for line in _lines(name, row)],
        )
        for path, problem in damaged.items():
            print(f"damaged: {path}: {problem}")


@dataclass(frozen=True)
class Show:
    """Show a run: its configuration, its evaluation points, what training noticed, and where its adapter is.

    Args:
        run: the run directory.
        json: print JSON instead.
    """

    run: str
    json: bool = False

    def __call__(self) -> None:
        """Print it."""
        import yaml

        from paretune.runs.rows import read_findings

        run = _one(self.run)
        adapter = run.path / "adapter"
        where = str(adapter.resolve()) if adapter.is_dir() else None
        findings = read_findings(run.path)
        if self.json:
            told = {
                "config": run.config,
                "finished": run.done,
                "points": run.points.to_dict("records"),
                "step": _step(run),
            }
            print(json.dumps(told | {"findings": findings, "adapter": where}, indent=2))
            return
        print(yaml.safe_dump(shortened(run.config), sort_keys=False, allow_unicode=True), end="")
        columns = ["step", "epoch", "attack", "clean", "robust"]
        rows = run.points[columns].itertuples(index=False)
        print_table(columns, [[cell(value) for value in row] for row in rows])
        for noted in findings:
            print(f"step {noted['step']}: {noted['finding']}")
        if where is not None:
            where += f", of step {_step_text(_step(run), _last(run), run.config.get('keep'))}"
        print(f"adapter: {where or ('none' if run.done else 'none; the run is not finished')}")


@dataclass(frozen=True)
class Diff:
    """Compare two runs: the fields of their configurations that differ, and the accuracies that do.

    The accuracies are those of the step whose model each has kept.

    Args:
        first: a run directory.
        second: another one.
        json: print JSON instead.
    """

    first: str
    second: str
    json: bool = False

    def __call__(self) -> None:
        """Print two tables."""
        from paretune.runs.fields import flat

        runs = [_one(self.first), _one(self.second)]
        config = _differing(*(flat(run.config) for run in runs))
        scores = _differing(*map(_scores, runs))
        if self.json:
            print(json.dumps({"config": config, "scores": scores}, indent=2))
            return
        for title, differing in (("configuration", config), ("accuracies", scores)):
            if differing:
                rows = [[name, *map(_text, values)] for name, values in differing.items()]
                print_table([title, self.first, self.second], rows)
            else:
                print(f"{title}: no difference")


@dataclass(frozen=True)
class Export(Selecting):
    """Write all points of runs as one table, or the runs without weights for others to check, as a leaderboard takes them.

    In a table a row is a point: a checkpoint under one attack. Fields of the configuration are columns such as
    config.optimizer.lr. For a leaderboard, runs are copied without adapter, log, labels and pictures, once all of them are
    what they say; paretune runs verify checks the copy.

    Args:
        runs: run directories, or directories of them.
        out: the file, .csv or .parquet; one that is there is replaced. For a leaderboard a new directory.
        by: for a leaderboard, who measured.
        machine: for a leaderboard, what on, as in "one H100".
    """

    runs: list[str]
    out: str = "points.csv"
    by: str | None = None
    machine: str | None = None

    def __post_init__(self) -> None:
        table = Path(self.out).suffix in (".csv", ".parquet")
        if (self.by, self.machine) != (None, None):
            if not (self.by and self.machine):
                raise ValueError("a leaderboard wants to know who measured, and what on; give by and machine")
            if table or not self.out:
                raise ValueError(f"out={self.out!r} must be a new directory where by and machine are given")
        elif not table or Path(self.out).is_dir():
            raise ValueError(
                f"out={self.out!r} must be a file whose name ends with .csv or .parquet, or for a leaderboard a new "
                "directory, with by and machine"
            )

    def __call__(self) -> None:
        """Read, choose, write, say where."""
        from paretune.frontiers.tables.spreadsheet import csv_text
        from paretune.runs.columns import point_table
        from paretune.runs.disk import write_text
        from paretune.runs.parquet import write_parquet
        from paretune.runs.store import as_runs

        runs, out = self.select(as_runs(self.runs)), Path(self.out)
        if self.by and self.machine:
            _submit(runs, out, self.by, self.machine)
            return
        table = point_table(runs)
        if out.suffix == ".csv":
            write_text(out, csv_text(table))
        else:
            write_parquet(table, out)
        print(f"{len(table):,} points of {len(runs):,} runs: {out.resolve()}")


@dataclass(frozen=True)
class Remove:
    """Remove runs, after a question: each directory with its points, its checkpoint and its adapter.

    What is no run, holds something that no run writes, or is being written by another process is refused, and then nothing
    is removed.

    Args:
        runs: run directories; not directories of them.
        yes: do not ask.
    """

    runs: list[str]
    yes: bool = False

    def __call__(self) -> None:
        """Check all, ask once, remove."""
        from contextlib import ExitStack

        from paretune.runs.disk import remove_directory
        from paretune.runs.lock import alone

        paths = list(dict.fromkeys(map(_removable, self.runs)))
        for path in paths:
            done = all((run / "DONE").exists() for run in _tasks(path) or [path])
            print(f"{path}: {_bytes(_size(path))}, {'finished' if done else 'not finished'}")
        if not self.yes:
            if not sys.stdin.isatty():
                raise ValueError("nobody is there to ask whether to remove this; pass --yes")
            if input(
                f"remove {'it' if len(paths) == 1 else f'these {len(paths)}'}? [y/N] "
            ).strip().lower() not in ("y", "yes"):
                print("nothing was removed")
                return
        with ExitStack() as held:
            for directory in (place for path in paths for place in (path, *_tasks(path))):
                held.enter_context(alone(directory))  # all of them, before any goes
            for path in paths:
                remove_directory(path)
                print(f"removed: {path}")


def _submit(runs: "list[Run]", out: Path, by: str, machine: str) -> None:
    """Write runs that are what they say for a leaderboard."""
    from paretune.runs.submission import write_submission
    from paretune.runs.verifying import problems

    for run in runs:
        for problem in problems(run):
            raise ValueError(f"{problem}. Nothing was exported")
    write_submission(runs, out, by=by, machine=machine)
    points = sum(len(run.points) for run in runs)
    print(f"{points:,} points of {len(runs):,} runs, {_bytes(_size(out))}: {out.resolve()}")


def _one(path: str) -> "Run":
    from paretune.runs.store import load_runs

    runs = load_runs(path)
    if len(runs) > 1:
        raise ValueError(f"{path} holds {len(runs)} runs; name one of them, such as {runs[0].path}")
    return runs[0]


def _removable(path: str) -> Path:
    """The directory of a run, or of a training of several tasks, and of nothing else."""
    from paretune.runs.rows import TASKS, training_of
    from paretune.runs.store import find_runs

    directory = Path(path)
    if directory.is_symlink():
        raise ValueError(f"{path} is a link; name the directory that it leads to, {directory.resolve()}")
    directory = directory.resolve()
    if training_of(directory) != directory:
        raise ValueError(
            f"{path} is one of the tasks that one model has learnt, and nothing was removed; remove all of them: "
            f"{training_of(directory)}"
        )
    tasks = _tasks(directory)
    if {*find_runs(directory)} - {*tasks} != ({directory} if not tasks else set()):
        raise ValueError(
            f"{path} is no run directory, and nothing was removed; paretune runs list shows those below it"
        )
    for task in tasks:
        _check_ours(task)
    _check_ours(directory, TASKS, *(task.name for task in tasks))
    return directory


def _tasks(path: Path) -> list[Path]:
    """The run directories in that of a training of several tasks; none where the run is of one."""
    from paretune.runs.rows import TASKS, read_json

    tasks = read_json(path / TASKS) if (path / TASKS).exists() else {}
    return [path / name for name in tasks if (path / name).is_dir()]


def _check_ours(directory: Path, *beside: str) -> None:
    """Raise ValueError if the run directory holds what no run writes, beside what has these names."""
    from paretune.runs.forgetting import FILES
    from paretune.runs.lock import mine

    known = _OURS.union(FILES, beside)
    others = sorted(
        entry.name for entry in directory.iterdir() if entry.name not in known and not mine(entry.name)
    )
    if others:
        raise ValueError(
            f"{directory} holds {', '.join(others[:5])}{', …' * (len(others) > 5)}, which no run writes; nothing was "
            "removed. Move that away first"
        )


def _summary(run: "Run") -> dict[str, Any]:
    """What a list says of a run, as JSON."""
    files = _files(run.path)
    return {
        "path": str(run.path),
        "strategy": run.config["strategy_config"],
        "task": run.config["task"],
        "seed": run.config["seed"],
        "finished": run.done,
        "step": _step(run),
        "last_step": _last(run),
        "keep": run.config.get("keep"),
        "scores": _at_end(run),
        "changed": max(status.st_mtime for status in files),
        "bytes": sum(status.st_size for status in files),
    }


def _last(run: "Run") -> int:
    """The last step that was measured; 0 where none was."""
    return int(run.points["step"].max()) if len(run.points) else 0


def _step(run: "Run") -> int:
    """The step whose model a finished run has kept, and the last one so far of another run."""
    return run.kept_step if run.done and len(run.points) else _last(run)


def _step_text(step: int, last: int, rule: str | None) -> str:
    """``60``, or ``20 of 60, keep=robust`` where that is not the last one."""
    return str(step) if step == last else f"{step} of {last}, keep={rule}"


def _at_end(run: "Run") -> list[dict[str, Any]]:
    """The accuracies of the evaluation point that counts, one for each attack."""
    rows = run.points[run.points["step"] == _step(run)]
    scores: list[Any] = rows[["attack", "threat", "epsilon", "clean", "robust"]].to_dict("records")
    return scores


def _lines(name: str, row: dict[str, Any]) -> list[list[str]]:
    """The lines of a table about one run."""
    from paretune.runs.naming import attack_text

    first = [name, row["strategy"].removesuffix("()"), row["task"], str(row["seed"])]
    age = _rounded(max(0.0, time.time() - row["changed"]), (1, "s"), (60, "min"), (3600, "h"), (86400, "d"))
    end = ["yes" if row["finished"] else "no", age, _bytes(row["bytes"])]
    step = _step_text(row["step"], row["last_step"], row["keep"])
    measured = [
        [
            *first,
            attack_text(scores["attack"]),
            step,
            f"{scores['clean']:.3f}",
            f"{scores['robust']:.3f}",
            *end,
        ]
        for scores in row["scores"]
    ]
    return measured or [[*first, "no point yet", "", "", "", *end]]


def _bytes(size: int) -> str:
    return _rounded(size, (1, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"))


def _rounded(number: float, *units: tuple[float, str]) -> str:
    """In the largest of ``units`` that is not larger, or the first."""
    size, unit = [candidate for candidate in units if candidate[0] <= max(1, number)][-1]
    return f"{number / size:.0f} {unit}"


def _files(path: Path) -> list[os.stat_result]:
    """What the system says of each file in a directory; links are left out."""
    every = (os.lstat(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
    return [status for status in every if stat.S_ISREG(status.st_mode)]


def _size(path: Path) -> int:
    return sum(status.st_size for status in _files(path))


def _scores(run: "Run") -> dict[str, float]:
    from paretune.runs.naming import attack_text

    scores = _at_end(run)
    clean = {"clean": scores[0]["clean"]} if scores else {}
    return clean | {f"robust under {attack_text(row['attack'])}": row["robust"] for row in scores}


def _differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    """By name, both values where they differ; None where there is none."""
    both = {name: [first.get(name), second.get(name)] for name in dict.fromkeys([*first, *second])}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _text(value: Any) -> str:
    """With all digits: two values that differ look different."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)
