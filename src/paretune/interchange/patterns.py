"""Names of layers as the patterns that strategies take, and back."""

import fnmatch
import glob
from collections.abc import Collection, Iterable

import regex  # type: ignore[import-untyped]


def fold(names: Iterable[str], others: Collection[str]) -> tuple[str, ...]:
    """Glob patterns that match each of ``names`` and none of ``others``, with ``*`` for numbers where that is so."""
    found: dict[str, None] = {}
    for name in names:
        folded = ".".join("*" if part.isdecimal() else glob.escape(part) for part in name.split("."))
        if any(fnmatch.fnmatchcase(other, folded) for other in others):
            folded = glob.escape(name)
        # A lone name could be taken for a role ("q") or a kind of layer ("conv"); a pattern cannot.
        found[folded if not folded.isidentifier() else f"[{folded[0]}]{folded[1:]}"] = None
    return tuple(found)


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether the whole ``name`` matches a regular expression that a file brought along.

    Raises:
        ValueError: it is none, or takes longer than a second, as one that was made to hang does.
    """
    try:
        return regex.fullmatch(pattern, name, timeout=1.0) is not None
    except TimeoutError:
        raise ValueError(f"{where}: the pattern {pattern[:80]!r} takes too long to match") from None
    except (regex.error, TypeError) as error:
        raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}") from None
