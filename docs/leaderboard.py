"""The leaderboard: a table for each task and threat, from the submissions that are in the repository.

python docs/leaderboard.py [DIRECTORY]

A row is a strategy of one submission, on one backbone, trained one way: its runs differ in seed and optimizer only. Areas
and intervals are those of ``paretune.frontiers.compare`` over the strategies that the submission trained that way.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paretune.frontiers.comparing import compare, labelled_points
from paretune.frontiers.verdict import AreaEstimate
from paretune.runs import Run, load_runs
from paretune.runs.naming import threat_text
from paretune.runs.submission import SUBMISSION, Submission

DIRECTORY = Path(__file__).parents[1] / "benchmarks" / "leaderboard"
FLOOR = 0.8  # of clean accuracy on select, for the column of robust accuracies
HEAD = (
    *("strategy", "area", "95 % interval", f"robust, clean ≥ {FLOOR}", "seeds", "points", "trainable"),
    *("backbone", "training", "submission"),
)
# What may differ among the runs of a comparison; "weights" are those before the first step, of adapter and head too.
_MAY_DIFFER = {"strategy", "strategy_config", "strategy_fields", "seed", "optimizer", "weights"}


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard."""

    area: AreaEstimate
    robust: float | None  # report accuracy of the most robust checkpoint at the floor, mean over seeds
    backbone: str
    training: str
    name: str  # of the directory of the submission
    submission: Submission
    split: tuple[str, str, int]  # fingerprints of report and select, and how many report examples

    @property
    def cells(self) -> list[str]:
        """As the table shows it."""
        area = self.area
        return [
            area.strategy,
            f"{area.area:.3f}",
            f"{area.low:.3f}–{area.high:.3f}",
            "–" if self.robust is None else f"{self.robust:.3f}",
            str(len(area.seeds)),
            str(area.k),
            f"{area.trainable_parameters:,}",
            self.backbone,
            self.training,
            self.name,
        ]


def entries(directory: Path = DIRECTORY) -> list[Entry]:
    """All rows of all submissions below ``directory``.

    Raises:
        ValueError, OSError: a submission cannot be read.
    """
    return [
        entry
        for file in sorted(directory.rglob(SUBMISSION))
        for runs in _alike(load_runs(file.parent))
        for entry in _entries(runs, file.parent)
    ]


def _alike(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in strategy, seed and optimizer only, of one task and split."""
    groups: dict[str, list[Run]] = {}
    for run in (run for run in runs if len(run.points)):
        shared = {name: value for name, value in run.config.items() if name not in _MAY_DIFFER}
        split = run.points[["task", "report_id", "select_id"]].iloc[0].tolist()
        groups.setdefault(json.dumps([shared, split], sort_keys=True), []).append(run)
    return [*groups.values()]


def _entries(runs: list[Run], directory: Path) -> Iterator[Entry]:
    points = labelled_points(runs)
    first = points.iloc[0]
    split = (str(first["report_id"]), str(first["select_id"]), int(first["examples"]))
    config = runs[0].config
    names = [_name(config.get(field)) for field in ("objective", "epsilon_schedule")]
    for condition in compare(runs).conditions:
        here = points[["attack", "threat", "epsilon"]] == [
            condition.attack,
            condition.threat,
            condition.epsilon,
        ]
        for area in condition.areas:
            rows = points[here.all(axis=1) & (points["label"] == area.strategy)]
            yield Entry(
                area,
                robust_at_floor(rows),
                _name(config.get("backbone")),
                ", ".join(filter(None, names)),
                directory.name,
                Submission.read(directory),
                split,
            )


def _name(value: Any) -> str:
    """Of a backbone or a part of training; what has none is written out."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, sort_keys=True)


def robust_at_floor(rows: pd.DataFrame, floor: float = FLOOR) -> float | None:
    """Robust accuracy on report of the checkpoint that is most robust on select and has this clean accuracy there.

    The mean over training seeds; None where one of them has no such checkpoint.
    """
    best = []
    for _, of_seed in rows.groupby("seed"):
        above = of_seed[of_seed["clean_select"] >= floor]
        if above.empty:
            return None
        best.append(float(above.loc[above["robust_select"].idxmax(), "robust"]))
    return sum(best) / len(best)


def markdown(directory: Path = DIRECTORY) -> str:
    """A section for each task, split, threat and attack: a table, the largest areas first, and who measured where."""
    tables: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries(directory):
        area = entry.area
        tables.setdefault((area.task, area.threat, area.epsilon, area.attack, *entry.split), []).append(entry)
    lines = []
    for (task, threat, epsilon, attack, report, _, examples), rows in sorted(tables.items()):
        title = f"{task}, {threat_text(threat, epsilon)}"
        about = f"Attacked by {attack}, measured on {examples:,} images whose fingerprint begins with {report[:8]}."
        lines += [f"## {_plain(title)}", "", _plain(about), ""]
        lines += [_row(HEAD), _row(["---"] * len(HEAD), plain=False)]
        lines += [_row(entry.cells) for entry in sorted(rows, key=lambda entry: -entry.area.area)]
        for name, told in sorted({entry.name: entry.submission for entry in rows}.items()):
            lines += ["", _plain(f"{name}: measured by {told.by} on {told.machine}, {told.date}.")]
        lines.append("")
    return "\n".join(lines)


def _row(cells: Iterable[str], *, plain: bool = True) -> str:
    return "| " + " | ".join(_plain(cell) if plain else cell for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text of a stranger as it is, whatever it means in Markdown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    sys.stdout.write(markdown(Path(sys.argv[1]) if sys.argv[1:] else DIRECTORY))
