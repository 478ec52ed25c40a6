"""Does shifted accuracy track clean accuracy along training, and do strategies rank alike by both?

python benchmarks/shift.py --runs DIR    # trains what DIR lacks, appends to benchmarks/shift.csv, prints the answers
python benchmarks/shift.py --answers     # the answers of the rows that are there

Seven strategies, three seeds, natural and adversarial training, on digits and Fashion-MNIST with the common corruptions, and
on emoji drawn by Google with those drawn by Twitter. Killed, it goes on where it stopped. A row is a point of a run.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from _record import append, machine
from paretune.frontiers import area
from paretune.runs.rows import elsewhere_of
from paretune.runs.store import Run
from paretune.sweeps.config import RunConfig, Strategies
from paretune.sweeps.grid import directory_name

FILE = Path(__file__).with_suffix(".csv")
STRATEGIES = "FullFineTune, LinearProbe, BitFit, LoRA, Adapter, Compacter, IA3"
CORRUPTED = {"shifts": "Corruptions('common', severities=(1, 3, 5))", "shift_limit": 40}
TASKS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", **CORRUPTED},
    "emoji": {"data": "emoji", "train_domains": "google"},
    "fashion-mnist": {"data": "fashion-mnist", **CORRUPTED},
}
TRAINING = {"natural": 0, "adversarial": 3}  # steps of the attack


def configs(emoji: str | None) -> Iterator[tuple[str, str, RunConfig]]:
    """The runs, so that every strategy has one before any has two."""
    for seed in range(3):
        for task, options in TASKS.items():
            root = {"data_root": emoji} if task == "emoji" else {}
            for training, steps in TRAINING.items():
                for strategy in Strategies.read(STRATEGIES):
                    config = RunConfig(
                        **options,
                        **root,
                        img_size=24,
                        limit=600,
                        train_steps=steps,
                        epochs=3,
                        points=3,
                        strategy=strategy,
                        seed=seed,
                    )
                    yield task, training, config


def rows(task: str, training: str, run: Run) -> Iterator[dict[str, Any]]:
    """One for each point of ``run``."""
    for _, point in run.points.iterrows():
        images = elsewhere_of(point).values()
        weights = [place["examples"] for place in images]
        yield {
            "task": task,
            "training": training,
            "strategy": run.config["strategy"],
            "seed": int(run.config["seed"]),
            "step": int(point["step"]),
            **{
                name: round(float(point[name]), 6)
                for name in ("clean", "robust", "clean_select", "robust_select")
            },
            "shifted": round(float(np.average([place["clean"] for place in images], weights=weights)), 6),
            "shifted_images": sum(weights),
            "gradient_evaluations": int(point["gradient_evaluations"]),
        }


def answers(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a task and kind of training: how shifted accuracy follows clean accuracy, and how strategies rank.

    The slope is that of shifted on clean accuracy over the points of one strategy and seed, with the mean over all of them
    and a t interval over seeds (of the mean over strategies). Ranks are Spearman's, over strategies, of the mean over seeds:
    of the final shifted accuracy with the final clean accuracy, with the area, and with the final robust accuracy.
    """
    made = []
    for (task, training), group in frame.groupby(["task", "training"], sort=False):
        slopes, within, last, areas = [], [], [], []
        for (strategy, seed), run in group.groupby(["strategy", "seed"]):
            ordered = run.sort_values("step")
            ends = {"strategy": strategy, "seed": seed}
            if ordered["clean"].nunique() > 1:
                slope = stats.linregress(ordered["clean"], ordered["shifted"])
                slopes.append(ends | {"slope": slope.slope})
                within.append(slope.rvalue)
            last.append(ends | ordered.iloc[-1][["clean", "robust", "shifted"]].to_dict())
            areas.append(ends | {"area": area(ordered["clean"], ordered["robust"])})
        by_seed = pd.DataFrame(slopes).groupby("seed")["slope"].mean()
        half = stats.t.ppf(0.975, len(by_seed) - 1) * by_seed.sem() if len(by_seed) > 1 else np.nan
        ends = pd.DataFrame(last).groupby("strategy")[["clean", "robust", "shifted"]].mean()
        ends["area"] = pd.DataFrame(areas).groupby("strategy")["area"].mean()
        ranks = {
            f"rank_with_{name}": stats.spearmanr(ends["shifted"], ends[name])[0]
            for name in ("clean", "robust", "area")
        }
        made.append(
            {
                "task": task,
                "training": training,
                "runs": len(last),
                "slope": by_seed.mean(),
                "slope_low": by_seed.mean() - half,
                "slope_high": by_seed.mean() + half,
                "correlation": float(np.median(within)),
                **ranks,
                "best_shifted": ends["shifted"].idxmax(),
                "best_area": ends["area"].idxmax(),
            }
        )
    return pd.DataFrame(made)


def table(made: pd.DataFrame) -> list[str]:
    """Of :func:`answers`, as the documentation has it."""
    lines = [
        "| task | training | slope (95% interval) | rank with clean | with robust | with area | best shifted, best area |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in made.itertuples():
        slope = f"{row.slope:.2f} ({row.slope_low:.2f} to {row.slope_high:.2f})"
        ranks = " | ".join(
            f"{rank:.2f}" for rank in (row.rank_with_clean, row.rank_with_robust, row.rank_with_area)
        )
        lines.append(
            f"| {row.task} | {row.training} | {slope} | {ranks} | {row.best_shifted}, {row.best_area} |"
        )
    return lines


def main() -> None:
    """Train, append, and answer."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=Path, help="directory of the run directories")
    options.add_argument("--emoji", help="directory of the emoji packages; none for node_modules here")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--answers", action="store_true", help="only say what the rows say")
    chosen = options.parse_args()
    if not chosen.answers:
        if chosen.runs is None:
            options.error("give --runs")
        about = machine()
        torch.set_num_threads(1)
        for task, training, config in configs(chosen.emoji):
            if task not in chosen.tasks:
                continue
            known = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=["task"])
            same = known.get("task", "") == task
            for name, value in (
                ("training", training),
                ("seed", config.seed),
                ("strategy", repr(config.strategy).removesuffix("()")),
            ):
                same = same & (known.get(name) == value) if len(known) else same
            if len(known) and same.any():
                continue
            (run,) = config.run(chosen.runs / task / training / directory_name(config), progress=False)
            for row in rows(task, training, run):
                append(FILE, row | about)
            print(f"{task:14} {training:12} {run.config['strategy']:14} seed {config.seed}", flush=True)
    print(*table(answers(pd.read_csv(FILE))), sep="\n")


if __name__ == "__main__":
    main()
