"""One decision among several areas, from which the set of the best, the ties and every sentence follow.

One strategy is *behind* another if the adjusted test tells the two apart and their areas differ by the margin or more.
The strategies that are behind none may be best: they are tied. The largest area is always among them, and where they
are not all, each of the others is behind one of them. If no false difference is told, the largest true area is among
them, so they are a confidence set of the best: Hsu, "Constrained simultaneous confidence intervals for multiple
comparisons with the best" (Annals of Statistics 1984, https://doi.org/10.1214/aos/1176346732).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Certainty = Literal["clear", "tie", "equivalent", "cannot tell", "alone", "unknown"]

SAME = 1e-12  # areas this close are the same number, rounded differently


@dataclass(frozen=True, eq=False)
class Decision:
    """What the tests decide among areas that are sorted, the largest first."""

    gaps: Floats  # (i, j): how far area j is behind area i
    tested: Flags  # (i, j): whether there is a test of the two
    direct: Flags  # (i, j): i is ahead of j and the test of the two tells them apart
    told: Flags  # (i, j): that, or i is ahead of what is ahead of j
    behind: Flags  # (i, j): and by the margin or more, so that j is not among the best
    close: Flags  # (i, j): differ by less than the margin, or are the same

    @property
    def tied(self) -> Flags:
        """Those that are behind none: they may be best."""
        return np.asarray(~self.behind.any(axis=0))

    @property
    def untested(self) -> Flags:
        """Those of which nothing says how certain it is that they are behind the first."""
        return np.asarray(self.tied & ~self.tested[0] & (np.arange(len(self.gaps)) > 0))

    def certainty(self, *, equivalent: bool) -> Certainty:
        """What the data decide, see :class:`paretune.frontiers.verdict.Recommendation`.

        Args:
            equivalent: whether the whole interval of each difference to the largest area is within the margin.
        """
        if self.untested.any():
            return "unknown"
        if len(self.gaps) == 1:
            return "alone"
        if self.tied.sum() == 1:
            return "clear"
        if equivalent and self.tied.all():
            return "equivalent"
        return "tie" if self.told.any() else "cannot tell"

    def clauses(
        self, names: Sequence[str], margin: float, where: str = "", quantity: str = "area"
    ) -> list[str]:
        """How the others stand to the first, which the clauses call "it"; those told apart from it go without saying."""
        same = self.tied & (self.gaps[0] < SAME)
        same[0] = False
        like = self.tied & self.tested[0] & ~self.told[0] & ~same
        like[0] = False
        near = self.close[0] & ~same & ~like
        near[0] = False
        sentences = []
        for those, text in (
            (same, f"{{}} {{has}} the same {quantity}"),
            (like, f"{{}} cannot be told apart from it{where}"),
            (near, f"{{}} {{is}} less than {margin:g} behind"),
        ):
            if marked := [name for name, mark in zip(names, those, strict=True) if mark]:
                single = len(marked) == 1
                verbs = {"has": "has" if single else "have", "is": "is" if single else "are"}
                sentences.append(text.format(listed(marked), **verbs))
        return sentences

    def behind_others(self, names: Sequence[str]) -> list[str]:
        """Those that are behind another one than the first, and are not told apart from the first itself."""
        behind: dict[int, list[str]] = {}
        for j in np.flatnonzero(self.tested[0] & ~self.told[0] & ~self.tied).tolist():
            behind.setdefault(int(np.argmax(self.behind[:, j] & self.tied)), []).append(names[j])
        return [
            f"{listed(those)} {'is' if len(those) == 1 else 'are'} told to be behind {names[i]}, if not behind {names[0]}"
            for i, those in behind.items()
        ]


def decide(areas: Sequence[float], p_values: Floats, *, level: float, margin: float) -> Decision:
    """Decide among areas.

    Args:
        areas: the largest first.
        p_values: adjusted over all pairs, shape ``(areas, areas)``; of each pair (i, j) with i before j, NaN where there
            is no test. The rest is not read.
        level: of the tests.
        margin: areas closer than this are equal for practical purposes.
    """
    sizes = np.asarray(areas, dtype=float)
    gaps = sizes[:, None] - sizes[None, :]
    upper = np.triu(np.ones(gaps.shape, dtype=bool), 1)
    tested = upper & ~np.isnan(p_values)
    direct = tested & (gaps > SAME) & (np.nan_to_num(p_values, nan=1.0) < 1 - level)
    told = direct.copy()
    # What is ahead of what is ahead of a third is ahead of that.
    while told.any() and (through := (told.astype(np.float32) @ told.astype(np.float32) > 0) & ~told).any():
        told |= through
    near = np.abs(gaps) < max(margin, SAME)
    return Decision(gaps, tested, direct, told, told & ~near, near)


def best_p_values(areas: Sequence[float], p_values: Floats, *, margin: float) -> Floats:
    """With which p-value each is behind another: below ``1 - level``, it is not among the best.

    Args:
        areas: as in :func:`decide`.
        p_values: as in :func:`decide`.
        margin: as in :func:`decide`.
    """
    sizes = np.asarray(areas, dtype=float)
    gaps = sizes[:, None] - sizes[None, :]
    counted = np.triu(gaps >= max(margin, SAME), 1)
    return np.asarray(np.where(counted, np.nan_to_num(p_values, nan=1.0), 1.0).min(axis=0))


def p_matrix(names: Sequence[str], pairs: Iterable[tuple[str, str, float | None]]) -> Floats:
    """The p-values as :func:`decide` takes them.

    Args:
        names: of the areas, the largest first.
        pairs: two names, the larger area first, and the p-value; None where there is no test.
    """
    place = {name: number for number, name in enumerate(names)}
    p_values = np.full((len(place), len(place)), np.nan)
    for a, b, p_value in pairs:
        p_values[place[a], place[b]] = np.nan if p_value is None else p_value
    return p_values


def within(intervals: Iterable[tuple[float | None, float | None]], margin: float) -> bool:
    """Whether every interval is known and lies within the margin around zero."""
    return all(
        low is not None and high is not None and -margin <= low and high <= margin for low, high in intervals
    )


def conclusion(
    certainty: Certainty, margin: float, noun: str, *, of: str = "these data", where: str = ""
) -> list[str]:
    """What follows for the first from its certainty, as a clause or none."""
    phrases = {
        "alone": f"there is no other {noun} to compare it with",
        "clear": f"every other {noun} is told apart from it{where}",
        "cannot tell": f"{of} do not tell which {noun} is best{where}",
    }
    if margin:
        phrases["equivalent"] = f"all differ by less than {margin:g} for practical purposes"
    return [phrases[certainty]] if certainty in phrases else []


def gap_text(gap: float) -> str:
    """A difference of areas that is above zero: three digits, or the first one that is not zero."""
    return f"{gap:.3f}" if gap >= 0.0005 else f"{gap:.1g}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """``a, b and c``; of many, the first and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
