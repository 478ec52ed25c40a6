"""Run directories without training: strategies with known frontiers, written as training writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.frontiers.ranking import Area, Gap, Ranking
from paretune.frontiers.settings import Settings
from paretune.runs.store import RunWriter


@dataclass(frozen=True)
class Strategy:
    name: str
    config: str
    gain: float  # added to the robust accuracy of every checkpoint
    parameters: int


STRATEGIES = (
    Strategy("LoRA", "LoRA(rank=8)", 0.06, 310_000),
    Strategy("Compacter", "Compacter()", 0.05, 52_000),
    Strategy("BitFit", "BitFit()", -0.02, 31_000),
    Strategy("FullFineTune", "FullFineTune()", -0.08, 3_400_000),
)
ATTACK = "PGD(Linf(4/255), steps=20)"


@dataclass(frozen=True)
class There:
    """Examples elsewhere: the share of its clean accuracy that every checkpoint keeps there, and where they are from.

    Or that each checkpoint keeps; None for copies that are right where their image is.
    """

    keeps: float | Sequence[float] | None
    call: str | None = None  # of the shift that makes them of the report split; None for a domain
    examples: int | None = (
        None  # the first so many of the report split, or of the domain; None for as many as it has
    )


def corruptions(kinds: Sequence[str], severities: Sequence[int] = (1, 2, 3, 4, 5)) -> dict[str, There]:
    """Corrupted copies of the report split, the stronger the worse."""
    return {
        f"{kind} {severity}": There(
            1 - (0.06 + 0.01 * place % 0.05) * severity, f"Corruption({kind!r}, severity={severity})"
        )
        for place, kind in enumerate(kinds)
        for severity in severities
    }


def right(
    accuracy: float, difficulty: NDArray[np.float64], rng: np.random.Generator, correlation: float = 0.64
) -> NDArray[np.bool_]:
    """Correctness with this expected accuracy; hard examples are hard for every checkpoint."""
    noise = rng.standard_normal(len(difficulty))
    latent = np.sqrt(correlation) * difficulty + np.sqrt(1 - correlation) * noise
    return latent < (NormalDist().inv_cdf(accuracy) if 0 < accuracy < 1 else np.inf * (accuracy - 0.5))


def trajectory(strategy: Strategy, points: int) -> list[tuple[float, float]]:
    """True (clean, robust) accuracies: training trades the first for the second, after a poor first point."""
    progress = np.linspace(0, 1, points)
    clean = 0.93 - 0.22 * progress**2 - 0.25 * (progress < 0.1)
    robust = 0.05 + 0.4 * np.sqrt(progress) + strategy.gain * (progress > 0.1)
    return [(float(c), float(max(0.0, r))) for c, r in zip(clean, robust, strict=True)]


def write_run(
    path: Path,
    strategy: Strategy,
    seed: int = 0,
    *,
    points: int = 8,
    examples: int = 400,
    examples_select: int = 200,
    attacks: Sequence[tuple[str, str, float, float]] = ((ATTACK, "Linf", 4 / 255, 1.0),),
    task: str = "digits",
    finish: bool = True,
    elsewhere: Mapping[str, There] | None = None,
    **config: Any,
) -> Path:
    """``attacks``: (repr, threat, epsilon, factor on the robust accuracy); ``elsewhere``: examples there by name."""
    writer = RunWriter(
        path,
        {"task": task, "strategy": strategy.name, "strategy_config": strategy.config, "seed": seed, **config},
    )
    difficulty = {
        "report": np.random.default_rng(1).standard_normal(examples),
        "select": np.random.default_rng(2).standard_normal(examples_select),
    }
    rng = np.random.default_rng([seed, *strategy.name.encode()])
    for index, (clean, robust) in enumerate(trajectory(strategy, points)):
        bits = {f"{split}/clean": right(clean, difficulty[split], rng) for split in difficulty}
        there = {}
        for name, where in (elsewhere or {}).items():
            size = where.examples or examples
            hard = difficulty["report"][:size]
            if where.call is None:
                hard = np.random.default_rng([3, *name.encode()]).standard_normal(size)
            keeps = where.keeps[index] if isinstance(where.keeps, Sequence) else where.keeps
            bits[f"elsewhere/{name}/clean"] = (
                bits["report/clean"][:size] if keeps is None else right(min(1.0, clean * keeps), hard, rng)
            )
            there[name] = {"examples": size, "id": name, "clean": bits[f"elsewhere/{name}/clean"].mean()}
            if where.call is not None:
                there[name] |= {"shift": where.call, "paired": True}
        rows = []
        for number, (attack, threat, epsilon, factor) in enumerate(attacks):
            for split in difficulty:
                attacked = right(min(1.0, robust * factor / clean), difficulty[split], rng)
                bits[f"{split}/robust-{number}"] = attacked & bits[f"{split}/clean"]
            rows.append(
                {
                    "step": 20 * (index + 1),
                    "epoch": 0.5 * (index + 1),
                    "attack": attack,
                    "threat": threat,
                    "epsilon": epsilon,
                    "clean": bits["report/clean"].mean(),
                    "robust": bits[f"report/robust-{number}"].mean(),
                    "clean_select": bits["select/clean"].mean(),
                    "robust_select": bits[f"select/robust-{number}"].mean(),
                    "examples": examples,
                    "examples_select": examples_select,
                    "report_id": f"report-{examples}",
                    "select_id": f"select-{examples_select}",
                    "bits_key": f"robust-{number}",
                    "trainable_parameters": strategy.parameters,
                    "train_seconds": 3.0 * (index + 1),
                    "cpu_seconds": 5.0 * (index + 1),
                    "peak_memory_bytes": 10**9,
                    "precision": "float32",
                    "versions": {"paretune": "0.1.0", "torch": "2.9.0"},
                    **({"elsewhere": there} if there else {}),
                }
            )
        writer.append(rows, bits)
    if finish:
        writer.finish({"train_seconds": 3.0 * points})
    return path


def write_runs(
    root: Path, strategies: Sequence[Strategy] = STRATEGIES, seeds: Sequence[int] = (0, 1), **options: Any
) -> Path:
    for number, strategy in enumerate(strategies):
        for seed in seeds:
            write_run(root / f"{number}-seed{seed}", strategy, seed, **options)
    return root


def untested(tables: Mapping[str, Mapping[str, float]], margin: float) -> list[Ranking[Area, Gap]]:
    """For each task the areas of its strategies, of which nothing says how sure they are."""
    rankings = []
    for task, table in tables.items():
        areas = [Area(task, name, area, None, None, 1, (0,), (area,)) for name, area in table.items()]
        areas.sort(key=lambda each: -each.area)
        rankings.append(Ranking(task, tuple(areas), (), k=1, notes=(), settings=Settings(margin=margin)))
    return rankings
