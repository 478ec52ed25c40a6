"""The specification of the matrix of pairs: who is ahead of whom, and how sure that is."""

from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.labels import shorten
from paretune.report.specs.frontier import ON_PAGE, SCHEMA, Spec, Theme, isolated, look, matrix, tidy
from paretune.report.specs.frontier import behind as behind_it

_CELL = 44  # pixels, height of a row
_ROOM_FOR_P, _ROOM_FOR_SHARE = 64, 36  # pixels of width from which a cell has room for them
_SHARE = "format(datum.ahead, '.0%')"


def matrix_spec(condition: Condition, looks: dict[str, Style], theme: Theme) -> Spec:
    """Each cell compares the strategy of its row with that of its column; both are ordered by area.

    Blue rows are ahead by more than the margin, vermilion ones behind; the paler, the less plausible. A sign says
    what the decision is: ▲ ahead and ▼ behind by the margin or more, △ and ▽ by less; ≈ that both are equal for
    practical purposes. A strategy may be best if its row has no ▼.
    """
    ranked = [estimate.strategy for estimate in condition.areas]
    rows = {name: f"{rank}  {shorten(name)}" for rank, name in enumerate(ranked, start=1)}
    columns = {name: f"{rank}" for rank, name in enumerate(ranked, start=1)}
    cells = _cells(condition, rows, columns)
    diagonal = [{"strategy": name, "row": rows[name], "column": columns[name]} for name in ranked]
    ahead, behind = "#0072B2", "#D55E00"
    if theme is ON_PAGE:
        ahead, behind = "var(--colour-0)", "var(--colour-1)"

    alone = "isolated === '' || isolated === datum.strategy || isolated === datum.other"

    def opacity(value: float) -> Spec:
        """Of everything, of the row and the column of the isolated strategy, and of the rest beside them."""
        if theme is not ON_PAGE:
            return {"value": value}
        return {"condition": {"test": alone, "value": value}, "value": 0.15}

    def text(shown: str, size: int, dy: int, room: tuple[int, int]) -> Spec:
        """A line of text in cells whose width in pixels is in the range."""
        fits = f"width >= {room[0] * len(ranked)} && width < {room[1] * len(ranked)}"
        shown_beside = f" && ({alone})" if theme is ON_PAGE else ""
        return {
            "data": {"name": "cells"},
            "mark": {
                "type": "text",
                "fontSize": size,
                "dy": dy,
                "aria": False,
                "color": theme.ink,
                "text": {"expr": shown},
            },
            "encoding": {"opacity": {"condition": {"test": fits + shown_beside, "value": 1}, "value": 0}},
        }

    percent = {"format": ".0%", "type": "quantitative"}
    signed = {"format": "+.4f", "type": "quantitative"}
    tooltip = [
        {"field": "strategy", "title": "Row", "type": "nominal"},
        {"field": "other", "title": "Column", "type": "nominal"},
        {"field": "difference", "title": "Difference of areas", **signed},
        {"field": "low", "title": "From", **signed},
        {"field": "high", "title": "To", **signed},
        {"field": "ahead", "title": "Row ahead", **percent},
        {"field": "equivalent", "title": "Equivalent", **percent},
        {"field": "behind", "title": "Row behind", **percent},
        {"field": "p", "title": "p, adjusted", "format": ".4f", "type": "quantitative"},
    ]
    axis: Spec = {"title": None, "grid": False, "labelLimit": 170}
    fill: Spec = {"condition": {"test": "datum.difference >= 0", "value": ahead}, "value": behind}
    colour, shape = (look(looks, attribute, theme) for attribute in ("colour", "shape"))
    return {
        "$schema": SCHEMA,
        "description": f"Matrix of pairs; ahead of the others by more than {condition.margin:g}: "
        + "; ".join(
            f"{d.strategy_a} of {d.strategy_b} with {d.ahead:.0%}, adjusted p {d.p_value:.3f}"
            for d in condition.differences
            if d.strategy_a == ranked[0]
        ),
        "datasets": {"cells": tidy(cells), "diagonal": diagonal},
        "usermeta": behind_it(
            "cells",
            ("strategy", "Row", ""),
            ("other", "Column", ""),
            ("difference", "Difference", "+.4f"),
            ("low", "From", "+.4f"),
            ("high", "To", "+.4f"),
            ("ahead", "Row ahead", ".0%"),
            ("equivalent", "Equivalent", ".0%"),
            ("behind", "Row behind", ".0%"),
            ("p", "p, adjusted", ".4f"),
        ),
        "params": isolated(theme),
        "height": _CELL * len(ranked),
        "resolve": {"scale": {"color": "independent"}},
        "encoding": matrix(columns.values(), rows.values(), axis),
        "layer": [
            {
                "name": "cells",
                "data": {"name": "cells"},
                "mark": {
                    "type": "rect",
                    "cornerRadius": 4,
                    "aria": False,
                    "stroke": theme.paper,
                    "strokeWidth": 3,
                    "fillOpacity": {"expr": "0.04 + 0.56 * abs(datum.ahead - datum.behind)"},
                },
                "encoding": {
                    "fill": fill,
                    "opacity": opacity(1.0),
                },
            },
            {
                "data": {"name": "diagonal"},
                "mark": {"type": "point", "filled": True, "size": 90, "aria": False},
                "encoding": {"color": colour, "shape": shape, "opacity": opacity(1.0)},
            },
            text("datum.sign", 13, 0, (0, _ROOM_FOR_SHARE)),
            text("datum.sign", 11, -7, (_ROOM_FOR_SHARE, _ROOM_FOR_P)),
            text(_SHARE, 11, 7, (_ROOM_FOR_SHARE, _ROOM_FOR_P)),
            text(f"trim(datum.sign + ' ' + {_SHARE})", 13, -6, (_ROOM_FOR_P, 10_000)),
            text(
                "datum.p < 0.001 ? 'p < 0.001' : 'p ' + format(datum.p, '.3f')", 10, 10, (_ROOM_FOR_P, 10_000)
            ),
            {
                # Above the texts, which would hide the cells from the pointer.
                "name": "targets",
                "data": {"name": "cells"},
                "mark": {"type": "rect", "opacity": 0, "aria": False},
                "encoding": {"tooltip": tooltip},
            },
        ],
    }


def _cells(condition: Condition, rows: dict[str, str], columns: dict[str, str]) -> list[Spec]:
    cells = []
    places = {name: rank for rank, name in enumerate(rows)}
    for d in condition.differences:
        for sign, name, other in ((1, d.strategy_a, d.strategy_b), (-1, d.strategy_b, d.strategy_a)):
            ahead, behind = (d.ahead, d.behind) if sign > 0 else (d.behind, d.ahead)
            pair = places[d.strategy_a], places[d.strategy_b]
            verdict = "≈" if d.practically == "equivalent" else ""
            if condition.decision.behind[pair]:
                verdict = "▲" if sign > 0 else "▼"
            elif condition.decision.told[pair] and not verdict:
                verdict = "△" if sign > 0 else "▽"
            cells.append(
                {
                    "strategy": name,
                    "other": other,
                    "row": rows[name],
                    "column": columns[other],
                    "difference": sign * d.difference,
                    "low": d.low if sign > 0 else -d.high,
                    "high": d.high if sign > 0 else -d.low,
                    "ahead": ahead,
                    "equivalent": d.equivalent,
                    "behind": behind,
                    "p": d.p_value,
                    "sign": verdict,
                }
            )
    return sorted(cells, key=lambda cell: (places[cell["strategy"]], places[cell["other"]]))
