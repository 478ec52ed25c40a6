"""Optimal transport between samples whose examples weigh the same, through POT."""

from typing import Any

import numpy as np

from paretune.shifts.distances.base import Floats

MOST_PIVOTS = 10**8  # of the network simplex; it needs far fewer
MOST_STEPS = 10_000  # of Sinkhorn at each strength
PRECISION = 1e-6  # how far its marginals may be off, in total and relative to 1


def exact_cost(cost: Floats) -> float:
    """min ⟨π, cost⟩ over couplings π of the uniform weights of rows and columns: a linear program, solved exactly.

    Raises:
        ImportError: POT is not installed.
        RuntimeError: the solver gave up.
    """
    n, m = cost.shape
    if min(n, m) == 1:
        return float(cost.mean())
    value, log = _pot().emd2(
        np.full(n, 1 / n),
        np.full(m, 1 / m),
        np.ascontiguousarray(cost),
        numItermax=MOST_PIVOTS,
        log=True,
    )
    if log["warning"] is not None:
        raise RuntimeError(
            f"the exact transport between {n} and {m} examples was not found: {log['warning']}"
        )
    return float(value)


def entropic_cost(cost: Floats, strength: float) -> float:
    """min ⟨π, cost⟩ + strength · KL(π ‖ a ⊗ b) over couplings of the uniform weights a and b, by Sinkhorn's iteration.

    Cuturi 2013, in the form of Feydy et al. 2019, https://arxiv.org/abs/1810.08278, equation 1: it falls to
    :func:`exact_cost` as ``strength`` does, and is the mean of ``cost`` in the limit of a large one. The iteration runs on
    logarithms, and starts from the result at twice the strength, and so on from the largest cost down.

    Raises:
        ImportError: POT is not installed.
        ValueError: it does not converge.
    """
    n, m = cost.shape
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    strengths = [strength]
    while strengths[0] < cost.max():
        strengths.insert(0, 2 * strengths[0])
    potentials = np.zeros(n), np.zeros(m)
    for now in strengths:
        start = potentials[0] / now, potentials[1] / now
        last = now == strength
        plan, log = _pot().sinkhorn(
            a,
            b,
            cost,
            now,
            method="sinkhorn_log",
            numItermax=MOST_STEPS if last else 20,
            stopThr=PRECISION / np.sqrt(m),
            log=True,
            warn=False,
            warmstart=start,
        )
        potentials = log["log_u"] * now, log["log_v"] * now
    if (off := float(np.abs(plan.sum(0) - b).sum())) > PRECISION:
        raise ValueError(
            f"Sinkhorn's marginals are off by {off:.1g} after {MOST_STEPS:,} steps, at an entropy of {strength:.3g} in "
            "units of the cost; give a larger entropy, or 0, which is exact"
        )
    # ⟨π, log(π / a⊗b)⟩ with log π = log_u + log_v − cost / strength, and marginals a and b.
    return strength * float(a @ (log["log_u"] - np.log(a)) + plan.sum(0) @ (log["log_v"] - np.log(b)))


def _pot() -> Any:
    try:
        import ot
    except ImportError as error:
        raise ImportError('optimal transport needs POT: pip install "paretune[distance]"') from error
    return ot
