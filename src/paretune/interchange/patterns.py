"""Names of layers as the patterns that strategies take."""

import fnmatch
import glob
from collections.abc import Collection, Iterable


def fold(names: Collection[str], among: Iterable[str]) -> tuple[str, ...]:
    """Glob patterns that match each of ``names`` and none of the rest ``among`` which they are, with ``*`` for numbers where
    that is so."""
    others = [name for name in among if name not in names]
    patterns: dict[str, None] = {}
    for name in names:
        folded = ".".join("*" if part.isdecimal() else glob.escape(part) for part in name.split("."))
        if any(fnmatch.fnmatchcase(other, folded) for other in others):
            folded = glob.escape(name)
        # A lone name could be taken for a role ("q") or a kind of layer ("conv"); a pattern cannot.
        patterns[folded if not folded.isidentifier() else f"[{folded[0]}]{folded[1:]}"] = None
    return tuple(patterns)
