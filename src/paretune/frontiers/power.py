"""How many examples or training seeds would tell two strategies apart.

The variance of a difference of areas is that of the examples, which falls with their number, plus that of
training, which falls with the number of seeds. A two-sided test at level ``alpha`` finds a true difference
``d`` with the power wanted where

    (z(1 - alpha / 2) + z(power))^2  (v_examples + v_seeds)  <=  d^2

Lachin, "Introduction to sample size determination and power analysis for clinical trials" (Controlled Clinical
Trials 1981, https://doi.org/10.1016/0197-2456(81)90001-5), equation (1). For few seeds z becomes a quantile of
Student's t. Planning with the difference just observed repeats its luck: read the numbers as orders of
magnitude.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.special import ndtri, stdtrit

MOST = 1000  # seeds or tasks; of more, nobody has them


@dataclass(frozen=True)
class Needed:
    """What would tell ``strategy_b`` from ``strategy_a``."""

    strategy_a: str
    strategy_b: str
    effect: float  # the true difference that would be found: the observed one, or the margin if larger
    power: float  # the chance to find it
    examples: int | None  # report examples (and select examples in proportion); None: no number suffices
    seeds: int | None  # training seeds of each strategy; None: unknown from one seed, or no number suffices


def needed_examples(
    effect: float, *, examples: int, v_examples: float, v_seeds: float, alpha: float, power: float = 0.8
) -> int | None:
    """The examples with which a difference is found, with the seeds there are; None if no number suffices.

    Args:
        effect: the true difference, above 0.
        examples: there are.
        v_examples: variance of the difference from these examples.
        v_seeds: variance of the difference from these seeds; 0 where only these trained models matter.
        alpha: two-sided level of the test, in (0, 1).
        power: chance to find the difference, in (0, 1).

    Raises:
        ValueError: an argument is out of range.

    >>> needed_examples(0.02, examples=1000, v_examples=0.01**2, v_seeds=0.0, alpha=0.05)  # 1000 (2.80 / 2)^2
    1963
    """
    _check(effect, alpha, power)
    allowed = float((effect / (ndtri(1 - alpha / 2) + ndtri(power))) ** 2)
    if allowed <= v_seeds:
        return None
    return math.ceil(examples * v_examples / (allowed - v_seeds))


def needed_seeds(
    effect: float, *, seeds: int, v_examples: float, v_seeds: float, alpha: float, power: float = 0.8
) -> int | None:
    """The seeds of each strategy with which a difference is found, with the examples there are.

    Args:
        effect: the true difference, above 0.
        seeds: of each strategy there are.
        v_examples: variance of the difference from the examples.
        v_seeds: variance of the difference from these seeds.
        alpha: two-sided level of the test, in (0, 1).
        power: chance to find the difference, in (0, 1).

    Returns:
        At least 2; None if more than a thousand.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(effect, alpha, power)

    def enough(number: int) -> bool:
        freedom = 2 * (number - 1)
        quantiles = stdtrit(freedom, 1 - alpha / 2) + stdtrit(freedom, power)
        return bool(quantiles**2 * (v_examples + v_seeds * seeds / number) <= effect**2)

    return _fewest(enough)


def needed_tasks(effect: float, *, spread: float, alpha: float, power: float = 0.8) -> int | None:
    """The tasks with which a mean difference over tasks is found, by Student's t over tasks.

    Args:
        effect: the true mean difference, above 0.
        spread: standard deviation of the difference between tasks.
        alpha: two-sided level of the test, in (0, 1).
        power: chance to find the difference, in (0, 1).

    Returns:
        At least 2; None if more than a thousand.

    Raises:
        ValueError: an argument is out of range.

    >>> needed_tasks(0.02, spread=0.02, alpha=0.05)
    10
    """
    _check(effect, alpha, power)

    def enough(number: int) -> bool:
        quantiles = stdtrit(number - 1, 1 - alpha / 2) + stdtrit(number - 1, power)
        return bool(quantiles**2 * spread**2 / number <= effect**2)

    return _fewest(enough)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The least number from 2 that is enough; ``enough`` is monotone. None if more than :data:`MOST`."""
    if not enough(MOST):
        return None
    low, high = 1, MOST  # between a number too few and one that is enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(effect: float, alpha: float, power: float) -> None:
    for name, value in (("effect", effect), ("alpha", alpha), ("power", power)):
        if not 0 < value < (math.inf if name == "effect" else 1):
            raise ValueError(
                f"{name} must be above 0{'' if name == 'effect' else ' and below 1'}; got {value}"
            )
