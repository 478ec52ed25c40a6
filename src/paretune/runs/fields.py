"""The fields of a run's configuration by dotted names, and runs that are selected by them."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from paretune._values import shown
from paretune.runs.store import Run


def flat(config: Any, above: str = "") -> dict[str, Any]:
    """What a configuration holds, by dotted names as in ``optimizer.lr``; the parts of a list by their number."""
    parts = config if isinstance(config, Mapping) else None
    if isinstance(config, list) and any(isinstance(part, Mapping) for part in config):
        parts = dict(enumerate(config))
    if parts is None:
        return {above: config}
    return {
        name: value
        for key, inner in parts.items()
        for name, value in flat(inner, f"{above}.{key}" if above else str(key)).items()
    }


def select(runs: Sequence[Run], where: str | None) -> list[Run]:
    """The runs that meet all conditions of ``where``; all of them for None.

    Args:
        runs: to choose from.
        where: conditions with semicolons between them, such as ``strategy=LoRA,BitFit; seed!=0``: the field of the
            configuration is one of the values, or none of them. A strategy without brackets stands for it with any options.

    Raises:
        ValueError: it is no condition, no run has such a field, or no run meets the conditions.
    """
    if where is None:
        return [*runs]
    fields = [flat(run.config) for run in runs]
    kept = [True] * len(runs)
    for condition in filter(None, _split(where, ";")):
        match = re.fullmatch(r"([^=!]*?)\s*(!?=)\s*(.*)", condition, flags=re.DOTALL)
        if match is None or not match[1] or not match[3]:
            raise ValueError(
                f"where={shown(where)}: {shown(condition)} is no condition such as strategy=LoRA,BitFit or seed!=0"
            )
        name, sign, values = match[1], match[2], _split(match[3], ",")
        known = sorted({field for config in fields for field in config})
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"where={shown(where)}: no run has a field {shown(name)}{hint} Fields: {', '.join(known)}"
            )
        met = [[name in config and _is(config[name], value) for config in fields] for value in values]
        for value, of_value in zip(values, met, strict=True):
            if not any(of_value):
                choices = sorted({_text(config[name]) for config in fields if name in config})
                raise ValueError(
                    f"where={shown(where)}: no run has {name}={value}; they have {shown(', '.join(choices))[1:-1]}"
                )
        kept = [
            old and any(new) == (sign == "=") for old, new in zip(kept, zip(*met, strict=True), strict=True)
        ]
    chosen = [run for run, keep in zip(runs, kept, strict=True) if keep]
    if not chosen:
        raise ValueError(f"where={shown(where)}: none of the {len(runs)} runs meets it")
    return chosen


def _is(value: Any, text: str) -> bool:
    """Whether ``text`` names ``value``: as a number, or as a name that may leave out what is in brackets."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    whole = _text(value).casefold()
    return text.casefold() in (whole, f"{whole}()", whole.partition("(")[0])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _split(text: str, separator: str) -> list[str]:
    """At separators outside of brackets: ``LoRA(rank=8, alpha=2)`` is one value."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
