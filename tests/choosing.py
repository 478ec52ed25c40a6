"""Of a test's cases some that differ as much as they can."""

from collections.abc import Hashable, Iterable, Sequence

import pytest

GOLDEN = (5**0.5 - 1) / 2


def choose(cases: Sequence[Sequence[Hashable]], count: int | None = None) -> list[int]:
    """The indices of ``count`` cases, each with as many values as possible that those before have not; where several have,
    they are spread over all. Without a count, as many as have each value of each parameter once: of the product of m and n
    values max(m, n).
    """
    values = [frozenset(enumerate(case)) for case in cases]
    left = sorted(range(len(cases)), key=lambda index: index * GOLDEN % 1)
    missing = frozenset[tuple[int, Hashable]]().union(*values)
    taken: list[int] = []
    while left and (missing if count is None else len(taken) < count):
        best = max(left, key=lambda index: len(values[index] & missing))
        left.remove(best)
        taken.append(best)
        missing -= values[best]
    return sorted(taken)


def leave_out(items: Iterable[pytest.Item]) -> None:
    """Of tests marked ``some``, mark the cases ``thorough`` that are not chosen."""
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("some"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        mark = cases[0].get_closest_marker("some")
        assert mark is not None
        taken = choose([[*map(repr, case.callspec.params.values())] for case in cases], *mark.args)
        for index, case in enumerate(cases):
            if index not in taken:
                case.add_marker(pytest.mark.thorough)
