"""The specification of the legend of a picture on white: line, mark, name and area of each strategy, by rank."""

from collections.abc import Iterable

from paretune.frontiers.ranking import Area
from paretune.report.drawing import Style
from paretune.report.labels import area_text, text_width
from paretune.report.specs.frontier import Spec, Theme, look

_ROW, _NAME, _AREA = (
    22,
    42,
    150,
)  # pixels: height of a row, where names start, width of an area and its interval


def legend_spec(areas: Iterable[Area], looks: dict[str, Style], theme: Theme, width: int) -> Spec:
    """A row for each strategy, in the order given; long names end in an ellipsis.

    Args:
        areas: of the strategies, with their intervals, if any.
        looks: of the strategies.
        theme: of the surroundings.
        width: in pixels.
    """
    rows: list[Spec] = [
        {"place": place, "strategy": area.strategy, "area": area_text(area.area, area.low, area.high)}
        for place, area in enumerate(areas)
    ]
    text = {"type": "text", "baseline": "middle", "fontSize": 12, "color": theme.ink, "aria": False}
    colour, shape, dash = (look(looks, attribute, theme) for attribute in ("colour", "shape", "dash"))
    room = min(max(text_width(row["strategy"], 12) for row in rows), width - _NAME - _AREA)
    return {
        "data": {"values": rows},
        "width": width,
        "height": _ROW * len(rows),
        "encoding": {"y": {"field": "place", "type": "ordinal", "axis": None}},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
                "encoding": {
                    "x": {"value": 0},
                    "x2": {"value": 32},
                    "color": colour,
                    "strokeDash": dash,
                },
            },
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 90,
                    "opacity": 1,
                    "stroke": theme.paper,
                    "strokeWidth": 1.2,
                    "aria": False,
                },
                "encoding": {"x": {"value": 16}, "color": colour, "shape": shape},
            },
            {
                "mark": {**text, "align": "left", "limit": room},
                "encoding": {"x": {"value": _NAME}, "text": {"field": "strategy"}},
            },
            {
                "mark": {**text, "align": "left"},
                "encoding": {"x": {"value": _NAME + room}, "text": {"field": "area"}},
            },
        ],
    }
