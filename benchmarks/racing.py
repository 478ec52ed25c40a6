"""What a race saves of a comparison, and how often it puts out the best strategy.

    python benchmarks/racing.py            # simulated; writes benchmarks/racing.csv
    python benchmarks/racing.py --real     # real runs, a race and then the full grid; adds to benchmarks/racing.csv

Simulated: strategies with learning curves as in ``benchmarks/coverage.py``, as known numbers. The first has ``lead`` more
robust accuracy than the second at every checkpoint, and the others follow with half of this between each. Runs of one
strategy differ by the luck of their seed, with a standard deviation of ``seed_spread`` in robust accuracy, of the first
strategy ``ratio`` times that. All runs share their select examples, and each is judged by the correctness of these, through
the code that ``paretune compare --until certain`` runs; a run costs the same for all. ``error`` is the share of races that
put out the first, which is as good as any, with the upper end of its 95 % interval (Clopper & Pearson, Biometrika 1934);
``alone`` is the share that ended with one strategy, ``stayed`` how many did on average, and ``share`` is that of the
gradient evaluations of the full grid which was spent.

Real: of one task, ``left`` are the strategies that may be best after the race, ``whole`` those after the full grid, and
``same`` says whether what the full grid recommends is among the former.
"""

import argparse
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincinv

from _record import append, check_columns, machine
from coverage import curve, difficulties, draw
from paretune.frontiers.elimination import Entrant
from paretune.frontiers.race import Race, Round, read_race
from paretune.frontiers.rounds import Key, after_round, next_round

ROWS = Path(__file__).with_suffix(".csv")
POINTS, CORRELATION, LEVEL, MARGIN = 4, 0.64, 0.95, 0.005
KEY = Key("simulated", "PGD", 0.0)


@dataclass(frozen=True)
class Setting:
    """One cell of the grid."""

    strategies: int
    seeds: int
    examples: int  # of the select split
    lead: float
    seed_spread: float
    ratio: float = 1.0
    repetitions: int = 200


def grid() -> Iterator[Setting]:
    """What is simulated: where all are the same or nearly, and over the lead and the spread."""
    for strategies, ratio in itertools.product((4, 7), (1.0, 2.0, 3.0)):
        yield Setting(strategies, 5, 250, 0.0, 0.01, ratio, repetitions=1000)
    yield Setting(7, 5, 250, 0.01, 0.01, 3.0, repetitions=1000)
    yield Setting(7, 5, 250, 0.01, 0.04, 1.0, repetitions=1000)
    yield Setting(7, 5, 60, 0.0, 0.01, 1.0, repetitions=1000)
    yield Setting(7, 2, 250, 0.0, 0.01, 3.0, repetitions=1000)
    for ratio in (1.0, 2.0, 3.0):  # where the luck of seeds is nearly all there is
        yield Setting(7, 5, 4000, 0.0, 0.01, ratio, repetitions=1000)
    for spread, lead in itertools.product((0.005, 0.01, 0.02), (0.02, 0.05, 0.1, 0.2)):
        yield Setting(7, 5, 250, lead, spread)
    for lead in (0.05, 0.1, 0.2):
        yield Setting(7, 5, 1000, lead, 0.01)
        yield Setting(4, 5, 250, lead, 0.01)


def simulated(setting: Setting, number: int) -> Race:
    """One race of strategies a, b, c, …, of which the first is the best."""
    rng = np.random.default_rng((number, setting.strategies, setting.examples))
    names = "abcdefghijklmnop"[: setting.strategies]
    difficulty = difficulties(setting.examples, 0, rng)
    clean, given = curve(POINTS)
    runs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}
    state = Race(tuple(names), tuple(range(setting.seeds)), LEVEL, MARGIN, (0.0, 0.0))
    while state.ended is None and (keys := next_round(state)):
        for name, _ in keys:
            place = names.index(name)
            lead = 0.0 if place == 0 else -setting.lead * (1 + (place - 1) / 2)
            spread = setting.seed_spread * (setting.ratio if place == 0 else 1.0)
            robust = np.clip(given + (lead + spread * rng.standard_normal()) / clean, 1e-3, 1 - 1e-3)
            runs[name].append(draw(clean, robust, difficulty, CORRELATION, rng))
        made = {name: Entrant.of(of_name, (0.0, 0.0)) for name, of_name in runs.items()}
        last = Round({f"{name}{seed}": name for name, seed in keys}, None, len(keys), 0.0, (), ())
        state = after_round(state, last, {KEY: made})
    return state


def row(setting: Setting) -> dict[str, object]:
    """What became of the races of a setting."""
    races = [simulated(setting, number) for number in range(setting.repetitions)]
    wrong = sum("a" in race.out for race in races)
    high = (
        float(betaincinv(wrong + 1, setting.repetitions - wrong, 0.975))
        if wrong < setting.repetitions
        else 1.0
    )
    spent = [race.gradient_evaluations / (setting.strategies * setting.seeds) for race in races]
    return {
        "error": round(wrong / setting.repetitions, 4),
        "error_high": round(high, 4),
        "alone": round(float(np.mean([len(race.stayed) == 1 for race in races])), 4),
        "stayed": round(float(np.mean([len(race.stayed) for race in races])), 3),
        "share": round(float(np.mean(spent)), 4),
    }


COLUMNS = (
    *("kind", "strategies", "seeds", "examples", "lead", "seed_spread", "ratio", "repetitions"),
    *(
        "error",
        "error_high",
        "alone",
        "stayed",
        "share",
        "same",
        "gradient_evaluations",
        "grid",
        "left",
        "whole",
    ),
)


def write(kind: str, shared: dict[str, str | int], **values: object) -> None:
    """Append a row and print it."""
    cells = dict.fromkeys(COLUMNS, "") | {"kind": kind} | values
    append(ROWS, shared | cells)
    print("  ".join(f"{name}={value}" for name, value in cells.items() if value != ""), flush=True)


FOUR = "FullFineTune,LoRA,BitFit,Compacter"
SEVEN = f"{FOUR},LinearProbe,SSF,NormTune"
QUICKSTART = {"limit": 600, "epochs": 3, "points": 2, "train_steps": 2, "eval_steps": 5}
# Of images of 8x8 and a small network, for a machine with little time.
SMALL = {"epsilon": 24 / 255, "epochs": 8, "points": 3, "train_steps": 2, "eval_steps": 5}
REAL: dict[str, dict[str, Any]] = {
    "quickstart 4x5": QUICKSTART | {"strategies": FOUR},
    "quickstart 7x5": QUICKSTART | {"strategies": SEVEN},
    "small 7x5": SMALL
    | {
        "strategies": "FullFineTune,LoRA(rank=4),LoRA(rank=1),BitFit,LinearProbe,NormTune,VisualPrompt(size=1)"
    },
}


def small_backbone() -> tuple[Any, Any]:
    """The digits at 8x8, and a network of two hidden layers that has learnt the odd ones of them without attack."""
    import torch

    import paretune as pt

    data = pt.load_data("digits", img_size=8)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *(torch.nn.Flatten(), torch.nn.Linear(192, 128), torch.nn.LayerNorm(128), torch.nn.ReLU()),
        *(torch.nn.Linear(128, 128), torch.nn.LayerNorm(128), torch.nn.ReLU(), torch.nn.Linear(128, 10)),
    )
    images, labels = data.train[:]
    odd = labels % 2 == 1
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images[odd]), labels[odd]).backward()
        optimizer.step()
    return data, pt.Backbone(network.eval(), image_size=8)


def real(name: str, directory: Path, workers: int, shared: dict[str, str | int]) -> None:
    """A race, then the full grid in the same directory, which repeats none of its runs; what is finished is kept."""
    import paretune as pt

    out = directory / name.replace(" ", "-")
    options = REAL[name] | {"seeds": "0,1,2,3,4", "out": out, "workers": workers}
    if name.startswith("small"):
        options["data"], options["backbone"] = small_backbone()
    (before,) = pt.compare_until(**options).conditions
    race = read_race(out)
    assert race is not None
    (after,) = pt.sweep(**options).conditions
    write(
        name,
        shared,
        strategies=len(race.strategies),
        seeds=len(race.seeds),
        examples=before.examples_select,
        stayed=len(race.stayed),
        left=" ".join(before.tied),
        whole=" ".join(after.tied),
        share=round(race.gradient_evaluations / race.grid, 4),
        gradient_evaluations=race.gradient_evaluations,
        grid=race.grid,
        same=after.recommended.strategy in before.tied,
    )


def summary(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The table of the page on races: what is spent, by the lead and the spread of seeds."""
    spreads = ("0.005", "0.01", "0.02")
    yield (
        "| lead of the best, robust accuracy | "
        + " | ".join(f"seeds spread by {spread}" for spread in spreads)
        + " |"
    )
    yield "|---" * (len(spreads) + 1) + "|"
    shown = [
        row for row in rows if (row["kind"], row["strategies"], row["examples"]) == ("simulated", "7", "250")
    ]
    for lead in ("0.02", "0.05", "0.1", "0.2"):
        cells = []
        for spread in spreads:
            (row,) = (row for row in shown if (row["lead"], row["seed_spread"]) == (lead, spread))
            cells.append(f"{float(row['share']):.0%} of the gradients, {float(row['stayed']):.1f} left")
        yield f"| {lead} | " + " | ".join(cells) + " |"


def read() -> list[dict[str, str]]:
    """The rows that there are."""
    with ROWS.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """All rows of one kind."""
    parser = argparse.ArgumentParser(description="what a race saves, and how often it errs")
    parser.add_argument("--real", action="store_true", help="real runs instead of simulated ones")
    parser.add_argument("--only", choices=[*REAL], help="of the real ones, this one")
    parser.add_argument("--out", type=Path, default=Path("racing-runs"), help="directory of the real runs")
    parser.add_argument("--workers", type=int, default=1, help="processes of the real runs")
    options = parser.parse_args()
    shared = machine("numpy", "scipy")
    if ROWS.exists():
        check_columns(ROWS, [*shared, *COLUMNS])
    if options.real:
        for name in [options.only] if options.only else REAL:
            real(name, options.out, options.workers, shared)
        return
    for setting in grid():
        write("simulated", shared, **asdict(setting), **row(setting))


if __name__ == "__main__":
    main()
