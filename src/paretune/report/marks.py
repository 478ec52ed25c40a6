"""The mark of a strategy as inline SVG, the same shapes as in the plots, and the buttons that carry it."""

from collections.abc import Iterable, Mapping
from html import escape

from paretune.report.drawing import DASHES, Style

_PATHS = {
    "circle": "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "square": "M3.5 3.5h9v9h-9z",
    "triangle-up": "M8 2.5l5.5 10h-11z",
    "triangle-down": "M8 13.5l5.5-10h-11z",
    "triangle-right": "M13.5 8l-10 5.5v-11z",
    "triangle-left": "M2.5 8l10 5.5v-11z",
    "diamond": "M8 2l5 6l-5 6l-5-6z",
    "cross": "M6 2.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
}


def symbol(style: Style) -> str:
    """An SVG element of 32 by 16 pixels, hidden from screen readers: the name stands beside it."""
    colour = f"var(--colour-{style.number})"
    dash = "" if style.dash == DASHES[0] else f' stroke-dasharray="{" ".join(map(str, style.dash))}"'
    return (
        f'<svg class="mark" viewBox="0 0 32 16" aria-hidden="true"><path d="M1 8h30" stroke="{colour}" stroke-width="2"'
        f'{dash}/><path fill="{colour}" stroke="var(--surface)" transform="translate(8)" d="{_PATHS[style.shape]}"/></svg>'
    )


def legend(strategies: Iterable[str], looks: dict[str, Style], texts: Mapping[str, str] | None = None) -> str:
    """One button for each strategy, which shows it alone in every plot of the page.

    Args:
        strategies: in order.
        looks: of them.
        texts: what stands beside a name, such as its area.
    """
    beside = texts or {}
    buttons = "".join(
        f'<button type="button" class="pick" aria-pressed="false" data-strategy="{escape(name)}">'
        f"{symbol(looks[name])}<span>{escape(name)}</span>"
        f"{f'<small>{escape(beside[name])}</small>' if name in beside else ''}</button>"
        for name in strategies
    )
    return f'<div class="keys" role="group" aria-label="Strategies">{buttons}</div>'
