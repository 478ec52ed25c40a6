"""The errors of each strategy's area, drawn jointly: from examples, from the choice, from training seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretune.frontiers.bootstrap import expanded, resample_counts, seed_error, seed_luck
from paretune.frontiers.cells import SELECTIONS, Cell, Samples, choice_errors
from paretune.frontiers.deciding import Floats
from paretune.frontiers.pareto import Reference

SEEDS_TO_RESAMPLE = 5  # of fewer, the spread between seeds is hardly known


@dataclass(frozen=True, eq=False)
class Resampled:
    """One strategy: its area, and ``resamples`` draws of each of its errors, shape ``(resamples,)`` each."""

    area: float
    per_seed: tuple[float, ...]
    report: Floats  # resampled areas; the draws of all strategies share their examples
    choice: Floats
    luck: Floats  # of the training seeds; zeros where these are not resampled
    seed_error: float | None  # standard error; None from one seed
    influence: Floats  # of the report units

    @property
    def all(self) -> Floats:
        """Resampled areas with every error that the interval covers."""
        total: Floats = self.report + self.choice + self.luck
        return total


def resample_strategies(
    cells: Mapping[str, Sequence[Cell]],
    samples: Samples,
    reference: Reference,
    resamples: int,
    seed: int,
    level: float,
) -> tuple[dict[str, Resampled], bool]:
    """The errors of each strategy, and whether they hold the luck of training seeds."""
    drawn: dict[str, list[Floats]] = {label: [] for label in cells}
    for counts in resample_counts(len(samples.report), resamples, seed):
        for label in cells:
            areas = [cell.resampled(counts, samples.report, reference) for cell in cells[label]]
            drawn[label].append(np.stack(areas))
    repeated = np.arange(resamples) % SELECTIONS  # with other report examples each time
    enough = all(len(of_label) >= SEEDS_TO_RESAMPLE for of_label in cells.values())
    result = {}
    for label, of_label in cells.items():
        per_seed = np.array([cell.estimate(reference) for cell in of_label])
        report = np.concatenate(drawn[label], axis=1)
        error = seed_error(per_seed) if len(of_label) > 1 else None
        result[label] = Resampled(
            area=float(per_seed.mean()),
            per_seed=tuple(per_seed.tolist()),
            report=expanded(report.mean(axis=0), len(samples.report), level),
            choice=choice_errors(np.mean([cell.chosen for cell in of_label], axis=0))[repeated],
            luck=seed_luck(error, len(of_label), resamples, seed, label)
            if enough and error is not None
            else np.zeros(resamples),
            seed_error=error,
            influence=np.mean([cell.influence(samples.report, reference) for cell in of_label], axis=0),
        )
    return result, enough
