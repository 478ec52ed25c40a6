"""JSON without its repetitions: the specifications of many plots differ in little but their data.

Two rewritings, both undone by ``unpack`` in ``page.js``: rows with the same keys become columns, ``{"$table": {key: […]}}``,
of which those of few texts are written as ``{"$levels": […], "$at": […]}``; and what occurs more than once becomes a
reference, ``{"$": n}``, to the n-th shared value. Objects of the caller therefore have no keys that begin so.
"""

import json
from collections import Counter
from typing import Any

import numpy as np

_WORTH = 24  # characters, for which a reference pays
_ROWS = 3  # for which a table pays


def packed(value: Any) -> dict[str, Any]:
    """``{"shared": […], "value": …}``: plain JSON that stands for ``value``, which holds no NaN.

    >>> packed({"a": "a long text that is repeated", "b": "a long text that is repeated"})
    {'value': {'a': {'$': 0}, 'b': {'$': 0}}, 'shared': ['a long text that is repeated']}
    """
    tables = _tabulated(value)
    texts: Counter[str] = Counter()
    _count(tables, texts)
    shared: list[Any] = []
    places: dict[str, int] = {}

    def shrink(node: Any) -> Any:
        if not isinstance(node, dict | list | str):
            return node
        text = _text(node)
        if texts[text] < 2 or len(text) < _WORTH:
            return within(node)
        if text not in places:
            small = within(node)
            places[text] = len(shared)
            shared.append(small)
        return {"$": places[text]}

    def within(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: shrink(item) for key, item in node.items()}
        return [shrink(item) for item in node] if isinstance(node, list) else node

    return {"value": shrink(tables), "shared": shared}


def _tabulated(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _tabulated(item) for key, item in node.items()}
    if not isinstance(node, list | tuple):
        return node.item() if isinstance(node, np.generic) else node
    rows = [_tabulated(item) for item in node]
    keys = [*rows[0]] if rows and isinstance(rows[0], dict) else []
    if not keys or len(rows) < _ROWS or not all(isinstance(row, dict) and [*row] == keys for row in rows):
        return rows
    return {"$table": {key: _column([row[key] for row in rows]) for key in keys}}


def _column(values: list[Any]) -> Any:
    if not all(isinstance(value, str | bool) for value in values):
        return values
    levels = [*dict.fromkeys(values)]
    if 2 * len(levels) > len(values):
        return values
    place = {level: at for at, level in enumerate(levels)}
    return {"$levels": levels, "$at": [place[value] for value in values]}


def _count(node: Any, texts: Counter[str]) -> None:
    if isinstance(node, dict | list | str):
        texts[_text(node)] += 1
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            _count(item, texts)


def _text(node: Any) -> str:
    return json.dumps(node, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
