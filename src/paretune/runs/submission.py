"""Runs that travel to a leaderboard: their numbers and the correctness of every example, who measured, and where.

    DIRECTORY/submission.json    who measured, on which machine, when, and the digest of every ``DONE`` below
    DIRECTORY/RUN/…              a run directory without weights, log, labels and pictures

So nothing of the data set is given away, and a run of four points takes some 10 kB. ``DONE`` keeps the digests of what
stayed behind: weights that are published elsewhere can be told to be those that were measured.
"""

import datetime
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paretune.runs import disk
from paretune.runs.confirmed import CONFIRMED
from paretune.runs.digests import FILES, changed_files, file_digest, file_digests, sealed
from paretune.runs.examples import EXAMPLES
from paretune.runs.rows import RACE, TASKS, left_out, read_json
from paretune.runs.store import Run, find_runs

SUBMISSION = "submission.json"
_FORMAT = 1
_KEPT = ("config.json", "points.jsonl", "bits", CONFIRMED)
_BEHIND = ("adapter", EXAMPLES, "log.jsonl")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Who measured some runs, and where.

    Args:
        by: who, as the leaderboard shows it.
        machine: what on, such as "one H100" or "2 cores of a Xeon".
        date: of the export, as in 2026-01-31.
        files: SHA-256 of the ``DONE`` of each run, and of what says of several how they belong together, by path.
    """

    by: str
    machine: str
    date: str
    files: dict[str, str]

    @classmethod
    def read(cls, directory: Path) -> "Submission":
        """That of a directory.

        Raises:
            FileNotFoundError: there is none.
            ValueError: ``submission.json`` is not what :func:`write_submission` writes.
        """
        file = directory / SUBMISSION
        told = read_json(file)
        kinds = {"by": str, "machine": str, "date": str, "files": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(told.get(name), kind)]
        if told.get("format") != _FORMAT or wrong or not all(told[name] for name in kinds):
            raise ValueError(
                f"{file} must have format {_FORMAT} and {', '.join(kinds)}; got {json.dumps(told)[:200]}"
            )
        return cls(**{name: told[name] for name in kinds})

    def problems(self, directory: Path) -> list[str]:
        """One line for each run in ``directory`` that was added, taken away or exchanged since the export."""
        dones = {(run / "DONE").relative_to(directory).as_posix(): run for run in find_runs(directory)}
        added = [f"{dones[name]} is not a run of {SUBMISSION}" for name in dones if name not in self.files]
        return changed_files(directory, self.files) + added


def write_submission(runs: Sequence[Run], out: Path, *, by: str, machine: str) -> Submission:
    """Write ``runs`` to a new directory ``out``, without weights, logs, labels and pictures.

    Args:
        runs: finished ones, which are what they say.
        out: new, or empty. Below it runs lie as below the directory that holds them all.
        by: who measured.
        machine: what on.

    Raises:
        ValueError: a run is not finished; the first is named.
        FileExistsError: something is in ``out``.
    """
    for run in runs:
        if not run.done:
            raise ValueError(
                f"{run.path} is not finished; finish it with the call that began it, or leave it out with where (--where)"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out={str(out)!r} holds something; name a new directory, or remove it first")
    directories = [run.path.resolve() for run in runs]
    root = Path(os.path.commonpath([directory.parent for directory in directories]))
    files = {}
    for directory in directories:
        there = out / directory.relative_to(root)
        _export(directory, there)
        files[(there / "DONE").relative_to(out).as_posix()] = file_digest(there / "DONE")
        for above in directory.parents:
            if not above.is_relative_to(root):
                break
            for name in (RACE, TASKS):
                if (above / name).is_file():
                    copy = out / above.relative_to(root) / name
                    shutil.copyfile(above / name, copy)
                    files[copy.relative_to(out).as_posix()] = file_digest(copy)
    submission = Submission(by=by, machine=machine, date=datetime.date.today().isoformat(), files=files)
    disk.write_json(out / SUBMISSION, {"format": _FORMAT, **vars(submission)})
    return submission


def _export(run: Path, out: Path) -> None:
    """A finished run without what stays behind; ``DONE`` names that, and keeps its digests.

    A run that an older paretune finished gets the digests of what is exported.
    """
    out.mkdir(parents=True)
    for name in _KEPT:
        if (run / name).is_dir():
            shutil.copytree(run / name, out / name, ignore=shutil.ignore_patterns(".*"))
        elif (run / name).exists():
            shutil.copyfile(run / name, out / name)
    done = read_json(run / "DONE")
    behind = [name for name in _BEHIND if (run / name).exists() or name in left_out(done)]
    told = {FILES: file_digests(out)} | done | {"left_out": behind}
    disk.write_json(out / "DONE", sealed(told))
