"""Whether run directories are what they say: whole files, and examples that bear every accuracy out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from paretune.runs.store import Run


def problems(run: Run) -> list[str]:
    """What is wrong with a run that could be read, beyond what :func:`~paretune.runs.store.load_runs` refuses.

    Every row must have the bits of its examples, whose means are the accuracies that it states, and of which robust ones are
    clean ones too; labels, pictures and confirmations must be those that were written.
    """
    looks: list[Callable[[], object]] = [partial(_check, run, row) for _, row in run.points.iterrows()]
    looks += [run.examples, run.confirmed]
    told = []
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


def splits(runs: Sequence[Run]) -> dict[str, set[tuple[str, str]]]:
    """The report and the select split of each task, by their fingerprints; several of one task cannot be compared."""
    by_task: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        for _, row in run.points.iterrows():
            by_task.setdefault(row["task"], set()).add((row["report_id"], row["select_id"]))
    return by_task


def versions(runs: Sequence[Run]) -> dict[str, set[str]]:
    """What each package was, over all rows, by its name."""
    by_name: dict[str, set[str]] = {}
    for run in runs:
        for named in run.points["versions"]:
            for name, version in named.items():
                by_name.setdefault(name, set()).add(version)
    return by_name
