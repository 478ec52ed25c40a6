"""What resampled areas allow to say about several strategies at once.

Every function takes estimates and their bootstrap resamples, drawn jointly, so that comparisons are paired.
"""

import numpy as np

from paretune.frontiers.deciding import SAME, Floats


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


def tell_apart(estimates: Floats, resampled: Floats, level: float) -> tuple[Floats, Floats, Floats]:
    """Test all pairs, each against its own error, so that the chance of any false difference is bounded.

    The step-down method of Romano & Wolf, "Exact and approximate stepdown methods for multiple hypothesis testing"
    (JASA 2005, https://doi.org/10.1198/016214504000000539), algorithm 1, on the largest of the studentised errors of
    the pairs that are not told apart yet. As the tests share their scale and their resamples, they are consistent: what
    is told to be ahead of a second, and this ahead of a third, is told to be ahead of the third; and the interval of a
    pair that is told apart holds no zero.

    Args:
        estimates: the larger the better, shape ``(candidates,)``.
        resampled: bootstrap resamples of them, drawn jointly, shape ``(candidates, resamples)``.
        level: of the intervals.

    Returns:
        Of the pairs, in the order of ``itertools.combinations``: p-values that are adjusted over all pairs, those of
        each pair alone, and the half width of the interval of each pair alone. p-values are two-sided, and at least
        ``1 / (resamples + 1)``.
    """
    errors = resampled - estimates[:, None]
    first, second = np.triu_indices(len(estimates), 1)
    gaps = np.abs(estimates[first] - estimates[second])
    gaps[gaps < SAME] = 0.0
    draws = resampled.shape[1] + 1
    # Resamples beyond an interval.
    allowed = max(1, int(np.searchsorted(np.arange(1, draws + 1) / draws, 1 - level)))
    spread, alone, half = (np.empty(len(gaps)) for _ in range(3))

    def apart(pair: int) -> Floats:
        of_pair: Floats = np.abs(errors[first[pair]] - errors[second[pair]])
        of_pair[of_pair < SAME] = 0.0
        return of_pair

    for pair in range(len(gaps)):
        error = apart(pair)
        spread[pair] = np.sqrt((error**2).mean())
        alone[pair] = (np.count_nonzero(error >= gaps[pair]) + 1) / draws
        half[pair] = np.partition(error, -allowed)[-allowed]
    moved = gaps > 0
    scale = np.where(spread > 0, spread, 1.0)
    statistic = np.where(spread > 0, gaps / scale, np.where(moved, np.inf, 0.0))
    adjusted = np.empty(len(gaps))
    widest = np.zeros(draws - 1)
    order = np.argsort(statistic, kind="stable")
    for pair in order:
        widest = np.maximum(widest, apart(pair) / scale[pair])
        adjusted[pair] = (np.count_nonzero(widest >= statistic[pair]) + 1) / draws
    adjusted[order[::-1]] = np.maximum.accumulate(np.maximum(adjusted, alone)[order[::-1]])
    return adjusted, alone, half


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
