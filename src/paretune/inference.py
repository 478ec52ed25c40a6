"""What resampled areas allow to say about several strategies at once.

Every function takes estimates and their bootstrap resamples, drawn jointly, so that comparisons are paired.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection among them is bounded.

    Holm, "A simple sequentially rejective multiple test procedure" (Scand. J. Statist. 1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(value) for value in adjusted]


def confidence_set(estimates: Floats, resampled: Floats) -> Floats:
    """The p-value with which each candidate belongs to the model confidence set.

    The candidates whose p-value is at least ``1 - level`` are the set: with that confidence it holds the one
    whose true area is largest. Unlike a winner with its interval, it is honest about how many have won by
    luck. Hansen, Lunde & Nason, "The model confidence set" (Econometrica 2011,
    https://doi.org/10.3982/ECTA5771), section 3.1.2: the range statistic T_R with its elimination rule, and
    p-values as in their definition 4.

    Args:
        estimates: the larger the better, shape ``(candidates,)``.
        resampled: bootstrap resamples of them, drawn jointly, shape ``(candidates, resamples)``.

    Returns:
        Shape ``(candidates,)``; the last one standing has 1.
    """
    errors = resampled - estimates[:, None]
    gaps = estimates[None, :] - estimates[:, None]  # (i, j): how far i is behind j
    spread = np.sqrt(((errors[None] - errors[:, None]) ** 2).mean(axis=2))
    scale = np.where(spread > 0, spread, np.inf)  # two that never differ are never told apart
    scale[(spread == 0) & (gaps != 0)] = np.finfo(float).tiny
    behind = gaps / scale
    p_values = np.ones(len(estimates))
    left = [*range(len(estimates))]
    reached = 0.0
    while len(left) > 1:
        inside = np.ix_(left, left)
        widest = np.zeros(resampled.shape[1])
        for i in left:
            widest = np.maximum(widest, (np.abs(errors[left] - errors[i]) / scale[i, left, None]).max(axis=0))
        statistic = float(behind[inside].max())
        share = (np.count_nonzero(widest >= statistic) + 1) / (resampled.shape[1] + 1)
        reached = max(reached, min(1.0, share))
        worst = left[int(behind[inside].max(axis=1).argmax())]
        p_values[worst] = reached
        left.remove(worst)
    return p_values


def shares_around(difference: float, resampled: Floats, margin: float) -> tuple[float, float, float]:
    """How the plausible differences lie to the region of practical equivalence, from -margin to margin.

    Plausible are the estimates turned round, ``2 * difference - resampled``, as in the basic interval. Reads
    like a posterior under a flat prior: Kruschke, "Rejecting or accepting parameter values in Bayesian
    estimation" (AMPPS 2018, https://doi.org/10.1177/2515245918771304).

    Returns:
        The shares below, within and above the region; they add up to 1.
    """
    plausible = 2 * difference - resampled
    below = float(np.count_nonzero(plausible < -margin)) / len(plausible)
    above = float(np.count_nonzero(plausible > margin)) / len(plausible)
    return below, 1 - below - above, above
