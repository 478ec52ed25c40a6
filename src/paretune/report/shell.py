"""The offline page around any analysis: style, plots, scripts and data in one file that loads nothing."""

import functools
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any
from urllib.parse import quote

from paretune.report.figures import converter
from paretune.report.packing import packed
from paretune.report.specs.frontier import ON_PAGE, Spec


def assemble(*, title: str, summary: str, body: str, plots: Mapping[str, Spec]) -> str:
    """One self-contained HTML page, in light and dark, for screens and for paper.

    What the script of the page does with the body:

    - Each plot is drawn into the element ``<div class="chart" id="KEY">`` of its key, at the width that this has.
      Inside of a closed ``<details>`` it is drawn when that opens.
    - A button ``class="pick" data-strategy="NAME"``, or a click on a mark whose row has that ``strategy``, sets the
      parameter ``isolated`` of every plot that has one to the name; once more, or Escape, to nothing.
    - A button ``class="zoom"`` sets the parameter ``whole`` of the plot in the same figure.
    - A plot with ``usermeta: {"table": {"data": NAME, "columns": [[field, title, format], …]}}`` gets its rows as a
      table behind it, with a button that saves them as CSV. Formats are the few of d3 that ``page.js`` lists, "" for
      text.

    Args:
        title: of the page, plain text.
        summary: a line below the title, plain text.
        body: HTML that is trusted: the caller has escaped every name in it.
        plots: Vega-Lite specifications for ``ON_PAGE`` by the id of their element. Rows may hold any text.

    Raises:
        ImportError: vl-convert, which brings the plotting library, is not installed.
        ValueError: a number in a plot is not finite.
    """
    return Template(text_of("page.html")).substitute(
        title=escape(title),
        summary=escape(summary),
        body=body,
        style=text_of("page.css") + text_of("pictures.css"),
        data=_script_json(packed({"config": ON_PAGE.config(), "plots": dict(plots)})),
        library=_library(),
        script=text_of("page.js"),
    )


_PLAIN = " ,:;()=/*+@!'-_"  # what a URL in an attribute may hold as it is


def csv_link(name: str, csv: str, label: str) -> str:
    """A link that saves ``csv`` as the file ``name``; it works without a script, and prints as nothing."""
    return (
        f'<a class="save" download="{escape(name)}" href="data:text/csv;charset=utf-8,{quote(csv, safe=_PLAIN)}">'
        f"{escape(label)}</a>"
    )


def text_of(name: str) -> str:
    """A file that stands beside this module."""
    return (files("paretune.report") / name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor break a line of script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _library() -> str:
    library: str = converter().javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return library.replace("</script", "<\\/script")
