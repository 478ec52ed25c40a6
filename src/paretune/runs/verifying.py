"""Whether run directories are what they say: whole files, and examples that bear every accuracy out."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from paretune.runs.digests import changed_since_done, states_digests
from paretune.runs.rows import left_out, read_json
from paretune.runs.store import Run
from paretune.runs.submission import SUBMISSION, Submission


def problems(run: Run) -> list[str]:
    """What is wrong with a run that could be read, beyond what :func:`~paretune.runs.store.load_runs` refuses.

    Every file of a finished run must be the one that it was finished with, where it has the digests. Every row must have the
    bits of its examples, whose means are the accuracies that it states, and of which robust ones are clean ones too; labels,
    pictures and confirmations must be those that were written.
    """
    looks: list[Callable[[], object]] = [partial(_check, run, row) for _, row in run.points.iterrows()]
    looks += [run.examples, run.confirmed]
    told = []
    try:
        told += changed_since_done(run.path) if run.done else []
    except (ValueError, OSError) as error:
        told.append(str(error))
    for look in looks:
        try:
            look()
        except (ValueError, OSError) as error:
            told.append(str(error))
    return list(dict.fromkeys(told))


def _check(run: Run, row: "pd.Series[Any]") -> None:
    bits = run.bits(row)
    for name, right in bits.items():
        part, _, kind = name.rpartition("/")
        if kind == "robust" and (right & ~bits[f"{part}/clean"]).any():
            raise ValueError(
                f"{run.path / row['bits']}: {row['bits_key']} of {part} is true where clean is not; robust implies clean"
            )


def unproven(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Runs of which less can be said, by why: their paths."""
    unfinished = [str(run.path) for run in runs if not run.done]
    without = [str(run.path) for run in runs if run.done and not states_digests(read_json(run.path / "DONE"))]
    told = {"not finished, so without digests of their files": unfinished}
    told |= {"finished by a paretune that wrote no digests of their files": without}
    for run in runs:
        if run.done and (names := left_out(read_json(run.path / "DONE"))):
            told.setdefault(f"exported without {', '.join(names)}", []).append(str(run.path))
    return {why: paths for why, paths in told.items() if paths}


def copies(runs: Sequence[Run]) -> dict[str, str]:
    """Runs that are others again, which would count twice: the path of each, and of that other one."""
    first: dict[str, str] = {}
    return {
        str(run.path): there
        for run in runs
        if (there := first.setdefault(run.key, str(run.path))) != str(run.path)
    }


def submission_problems(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """What is wrong with each submission in or below ``paths``, by its directory; nothing of those that are well."""
    told = {}
    files = {file for path in paths for file in Path(path).rglob(SUBMISSION)}
    for file in sorted(files):
        try:
            wrong = Submission.read(file.parent).problems(file.parent)
        except (ValueError, OSError) as error:
            wrong = [str(error)]
        if wrong:
            told[str(file.parent)] = wrong
    return told


def splits(runs: Sequence[Run]) -> dict[str, dict[tuple[str, str], list[str]]]:
    """The report and the select split of each task, by their fingerprints, and which runs have rows of them.

    Several of one task cannot be compared.
    """
    by_task: dict[str, dict[tuple[str, str], list[str]]] = {}
    for run in runs:
        for task, *split in dict.fromkeys(
            run.points[["task", "report_id", "select_id"]].itertuples(index=False, name=None)
        ):
            by_task.setdefault(task, {}).setdefault((split[0], split[1]), []).append(str(run.path))
    return by_task


def versions(runs: Sequence[Run]) -> dict[str, set[str]]:
    """What each package was, over all rows, by its name."""
    by_name: dict[str, set[str]] = {}
    for run in runs:
        for named in run.points["versions"]:
            for name, version in named.items():
                by_name.setdefault(name, set()).add(version)
    return by_name
