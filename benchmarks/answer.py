"""What the quickstart's answer costs: by a loop of peft and torchattacks, by the full grid, and by a race that reuses.

python benchmarks/answer.py --runs DIR           # what DIR lacks, appends to benchmarks/answer*.csv, prints the bill
python benchmarks/answer.py --where              # where the seconds of one run go, appends to benchmarks/answer_where.csv

All three are asked which of the quickstart's four strategies has the best frontier on digits, with three seeds:

  loop    each run to its end by peft and torchattacks, PGD at each of its checkpoints on both splits (``_naive.py``)
  grid    the same runs by ``paretune compare``
  race    ``paretune compare --until certain --reuse true``, trained by ATTA, which keeps attacks, with two steps for three

The first two take turns, seed by seed; the race comes last. Each part is a process of one thread, start and imports
included, and its CPU time counts. Killed, it goes on with the part where it stopped.
"""

import argparse
import contextlib
import functools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from _record import append, machine

FILE = Path(__file__).with_suffix(".csv")
AREAS, WHERE = FILE.with_name("answer_areas.csv"), FILE.with_name("answer_where.csv")
SEEDS = range(3)
RACE = ["--until", "certain", "--reuse", "true", "--objective", "ATTA()", "--train-steps", "2"]


def parts() -> Iterator[tuple[str, str, list[str]]]:
    """(variant, part, command without its directory), in their order."""
    for seed in SEEDS:
        yield "loop", f"seed {seed}", [sys.executable, str(FILE.with_suffix(".py")), "--loop", str(seed)]
        yield "grid", f"seed {seed}", ["paretune", "compare", "--seeds", str(seed)]
    yield "race", "all", ["paretune", "compare", "--seeds", ",".join(map(str, SEEDS)), *RACE]


def spend(runs: Path) -> None:
    """Run the parts that have no row yet, a row each."""
    about = machine("peft", "torchattacks")
    known = pd.read_csv(FILE)[["variant", "part"]].apply(tuple, axis=1).tolist() if FILE.exists() else []
    for variant, part, command in parts():
        if (variant, part) in known:
            continue
        where = runs / variant
        options = ["--workers", "1"] if variant != "loop" else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, *options, "--out", str(where)],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        append(FILE, {"variant": variant, "part": part, "cpu_seconds": round(seconds, 1), **about})
        print(f"{variant} {part}: {seconds:.0f} s", flush=True)


def judge(runs: Path) -> None:
    """One row for each variant and strategy: its area, what was run for it, and who may be best."""
    from paretune.frontiers import compare, recommend
    from paretune.runs.store import load_runs

    about = machine("peft", "torchattacks")
    AREAS.unlink(missing_ok=True)
    for variant in ("loop", "grid", "race"):
        found = load_runs(runs / variant)
        (condition,) = compare(found).conditions
        (answer,) = recommend(found)
        for area in condition.areas:
            ran = [run for run in found if run.config["strategy"] == area.strategy]
            append(
                AREAS,
                {
                    "variant": variant,
                    "strategy": area.strategy,
                    "runs": len(ran),
                    "area": round(area.area, 4),
                    "low": round(area.low, 4),
                    "high": round(area.high, 4),
                    "may_be_best": area.strategy in answer.confidence_set,
                    **about,
                },
            )


def loop(seed: int, out: Path) -> None:
    """The runs of one seed by peft and torchattacks."""
    from _naive import train
    from paretune.sweeps.config import CompareConfig, Seeds

    torch.set_num_threads(1)
    for config in CompareConfig(seeds=Seeds((seed,))).runs():
        path = out / f"{config.slug}-{seed}"
        if not (path / "DONE").exists():
            train(config, config.load_data(), path)


def where() -> None:
    """CPU seconds of the parts of one run of each strategy, without and with reuse."""
    from paretune.sweeps.config import CompareConfig, Seeds

    torch.set_num_threads(1)
    about = machine()
    for variant, options in (("grid", {}), ("race", {"reuse": True})):
        for config in CompareConfig(seeds=Seeds((0,)), **options).runs():
            config.check()  # imports
            with tempfile.TemporaryDirectory() as directory, clocks() as seconds:
                began = time.thread_time()
                config.run(Path(directory) / "run", progress=False)
                whole = time.thread_time() - began
            rest = whole - sum(seconds.values())
            row = {name: round(spent, 2) for name, spent in seconds.items()} | {"rest": round(rest, 2)}
            append(WHERE, {"variant": variant, "strategy": type(config.strategy).__name__, **row, **about})
            print(variant, config.strategy, row, flush=True)


@contextlib.contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """CPU seconds of this thread in each part, what lies inside another part counted there alone."""
    from paretune.attacks.copy import engine
    from paretune.sweeps.config import RunConfig
    from paretune.training import gradients, measuring, processes, record

    timed: list[tuple[Any, str, str]] = [
        (RunConfig, "load_data", "loading"),
        (RunConfig, "adapted", "loading"),
        (measuring.AtWork, "attacked", "attack"),
        (gradients, "_descend", "descent"),
        (processes, "evaluate", "evaluation"),
        (engine.AttackCopy, "refresh", "refresh"),
        (torch.optim.AdamW, "step", "optimizer"),
        (record.Record, "point", "storing"),
    ]
    seconds = dict.fromkeys((part for *_, part in timed), 0.0)
    inside: list[float] = []

    def clocked(function: Any, part: str) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            inside.append(0.0)
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - began
                seconds[part] += spent - inside.pop()
                if inside:
                    inside[-1] += spent

        return call

    with contextlib.ExitStack() as undo:
        for place, name, part in timed:
            function = getattr(place, name)
            undo.callback(setattr, place, name, function)
            setattr(place, name, clocked(function, part))
        yield seconds


def bill() -> list[str]:
    """A table for a page: runs and CPU seconds of each variant, how many times the race's, and what it answers."""
    seconds = pd.read_csv(FILE).groupby("variant", sort=False)["cpu_seconds"].sum()
    areas = pd.read_csv(AREAS)
    lines = ["| | runs | CPU seconds | times the race | may be best |", "|---|---|---|---|---|"]
    for variant, rows in areas.groupby("variant", sort=False):
        best = [
            f"{row.strategy} {row.area:.2f} ({row.low:.2f} to {row.high:.2f})"
            for row in rows[rows["may_be_best"]].itertuples()
        ]
        spent = f"{seconds[variant]:.0f} | {seconds[variant] / seconds['race']:.1f}"
        lines.append(f"| {variant} | {rows['runs'].sum()} | {spent} | {', '.join(best)} |")
    return lines


def main() -> None:
    """Spend, judge, print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=Path, help="directory of the run directories")
    options.add_argument("--where", action="store_true", help="where the seconds go")
    options.add_argument("--loop", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.loop is not None:
        loop(chosen.loop, chosen.out)
        return
    if chosen.where:
        where()
    if chosen.runs is not None:
        spend(chosen.runs)
        judge(chosen.runs)
    if FILE.exists():
        print(*bill(), sep="\n")


if __name__ == "__main__":
    main()
