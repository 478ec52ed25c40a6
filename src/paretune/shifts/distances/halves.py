"""How sure a distance is: what it is between random halves of the samples."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from paretune.shifts.distances.base import Kind, Pair, Rows


@dataclass(frozen=True)
class Spread:
    """What halves tell of a distance.

    Attributes:
        error: Standard error of the distance between the whole samples.
        floor: Mean distance between two halves of one sample.
    """

    error: float
    floor: float


def spread(kind: Kind, pair: Pair, *, paired: bool, resamples: int, seed: int) -> Spread:
    """Half-sampling: each sample is cut in two at random, class by class, ``resamples`` times.

    Half of a sample drawn without replacement differs from the whole, in a mean and in what is nearly one, as the whole
    differs from what it was drawn from: 1 / (n/2) − 1/n = 1/n. So the standard deviation of the distance between halves is
    the standard error of the distance between the samples (the delete-half jackknife; Shao and Wu 1989,
    https://doi.org/10.1214/aos/1176347263). A distance between halves is larger, and only its deviations are used. A
    bootstrap with replacement would be centred too high as well: a sample with repetitions has fewer different examples, and
    is farther from any other. Where the two sets are the same, a value is no longer nearly a mean, and varies by less than
    halves say: the error is too large then, of MMD by √3.

    Args:
        kind: Of distance.
        pair: The samples, with at least twice as many examples as ``kind`` needs, as :attr:`Kind.least` says.
        paired: Whether example i of one may be of the same image as example i of the other: both stay in one half, which
            is right for examples that have nothing to do with each other too.
        resamples: How often, at least 2.
        seed: Of the cuts.
    """
    generator = np.random.default_rng(seed)
    values, floors = [], []
    for _ in range(resamples):
        first = _halves(pair, pair.first, generator)
        if paired:
            place = {int(row): at for at, row in enumerate(pair.first)}
            second = [pair.second[[place[int(row)] for row in half]] for half in first]
        else:
            second = _halves(pair, pair.second, generator)
        values.append(kind.of(replace(pair, first=first[0], second=second[0])))
        floors += [kind.of(replace(pair, first=half, second=rest)) for half, rest in (first, second)]
    return Spread(float(np.std(values, ddof=1)), float(np.mean(floors)))


def interval(value: float, error: float, *, resamples: int, level: float) -> tuple[float, float]:
    """``value`` and so many standard errors on both sides, by Student's t as the error itself is an estimate."""
    half = float(t.ppf((1 + level) / 2, resamples - 1)) * error
    return value - half, value + half


def _halves(pair: Pair, rows: Rows, generator: np.random.Generator) -> list[Rows]:
    """``rows`` in two parts of which each has half of every class; odd ones out go to either in turn."""
    parts: tuple[list[Rows], list[Rows]] = ([], [])
    larger = int(generator.integers(2))
    groups = pair.classes(rows)
    for number in generator.permutation(len(groups)):
        order = generator.permutation(groups[number])
        middle = (len(order) + larger) // 2
        larger = (larger + len(order)) % 2
        parts[0].append(order[:middle])
        parts[1].append(order[middle:])
    return [rows[np.concatenate(part)] for part in parts]
