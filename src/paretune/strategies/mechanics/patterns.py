"""Patterns of names that somebody else wrote: matched within bounds of time, and never by peft itself."""

import re
import time
from collections.abc import Iterable
from typing import Any

import regex  # type: ignore[import-untyped]
from torch import nn

LONGEST = 1_000_000  # letters; one that names each layer of a large model has some hundred thousand
_SECONDS = 1.0
_QUANTIFIED = re.compile(r"\.\*|\\d\+|\\d")
_PLAIN = re.compile(r"(?:[\w.^$|()-]|\\\.)*")


class Pattern:
    """A regular expression that takes at most a second for all the names that it is asked about.

    Args:
        text: the expression, as Python's ``re`` understands it.
        where: it is from, for messages.

    Raises:
        ValueError: it is none, or too long.
    """

    def __init__(self, text: Any, where: str) -> None:
        self._shown, self._where, self._left = repr(text)[:80], where, _SECONDS
        if not isinstance(text, str) or len(text) > LONGEST:
            raise ValueError(
                f"{where}: {self._shown} is no regular expression of at most {LONGEST:,} letters"
            )
        try:
            re.compile(text)  # which has no recursion and no other operators that could grow without an end
            self._compiled = regex.compile(text)
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(f"{where}: {self._shown} is no regular expression: {str(error)[:200]}") from None

    def __call__(self, name: str) -> bool:
        """Whether it matches the whole ``name``.

        Raises:
            ValueError: it takes longer than what is left of the second, or more memory than there is.
        """
        start = time.monotonic()
        try:
            match = self._compiled.fullmatch(name, timeout=max(self._left, 0.001))
        except (TimeoutError, MemoryError):
            raise ValueError(f"{self._where}: the pattern {self._shown} takes too long to match") from None
        self._left -= time.monotonic() - start
        return match is not None


def require_plain(text: Any, where: str) -> None:
    """Raise ValueError unless ``text``, which peft will match itself, cannot take long.

    It may have names, ``|``, parentheses, ``^`` and ``$``, and thrice ``.*`` or ``\\d+``.
    """
    repeats = len(_QUANTIFIED.findall(text)) if isinstance(text, str) and len(text) <= LONGEST else 4
    if repeats > 3 or not _PLAIN.fullmatch(_QUANTIFIED.sub("", text)):
        raise ValueError(
            f"{where}: the pattern {str(text)[:80]!r} is not read; it may have names, dots, |, parentheses, and at "
            r"most thrice .* or \d+"
        )


def selector(names: Iterable[str], module: nn.Module) -> list[str] | str:
    """``names`` as peft's list, or as a regular expression where the end of one is the end of another module's name too."""
    chosen = sorted(names)
    others = [name for name, _ in module.named_modules() if name not in chosen]
    if chosen and any(other.endswith(tuple(chosen)) for other in others):
        return "|".join(map(re.escape, chosen))
    return chosen
