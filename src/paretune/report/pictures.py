"""The section of a report with pictures: images as they are, what the attack adds to them, and what the model then says."""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.frontiers.verdict import Condition
from paretune.report.drawing import Style
from paretune.report.marks import symbol
from paretune.report.sections import Part
from paretune.report.tables import table
from paretune.runs.examples import Examples, Pictures
from paretune.runs.naming import attack_text
from paretune.runs.store import Run

MOST_BYTES = 6_000_000  # of all pictures of a page, before they are compressed
_GRIDS, _MOST_HTML = 12, 600_000  # so many grids there are however large, and characters of more
_SHARP = 104  # pixels: as wide as a picture is shown; smaller ones are enlarged without blur

Image = NDArray[np.float32]


@dataclass(frozen=True)
class _Kept:
    run: Run
    examples: Examples
    pictures: Pictures


def pictures_section(
    conditions: Sequence[Condition],
    points: pd.DataFrame,
    runs: list[Run],
    looks: dict[str, Style],
    *,
    folded: bool,
) -> Part:
    """A grid for each task and strategy: its run with the first seed that has pictures.

    Args:
        conditions: what the report is about.
        points: as :func:`paretune.report.drawing.as_points` gives them.
        runs: that ``run_index`` of the points counts.
        looks: of the strategies.
        folded: whether the section starts folded to its heading.
    """
    tasks: dict[str, dict[str, _Kept | str]] = {}  # of each strategy what was kept, or why nothing is shown
    size, count = 1, 0  # values of an image in a grid, and grids
    for task, label in dict.fromkeys((c.task, area.strategy) for c in conditions for area in c.areas):
        rows = points[(points["task"] == task) & (points["label"] == label)].sort_values(
            ["seed", "run_index"]
        )
        of_label = [runs[index] for index in rows["run_index"].unique()]
        shown: _Kept | str
        if (count + 1) * size > MOST_BYTES:
            shown = "the page would be too large"
        elif (kept := next(filter(None, map(_kept, of_label)), None)) is None:
            shown = _why_not(of_label[0])
        else:
            shown, size, count = kept, 3 * kept.pictures.clean[0].size, count + 1
        tasks.setdefault(task, {})[label] = shown
    images = max(1, MOST_BYTES // (size * max(1, count)))
    grids: dict[tuple[str, str], str] = {}
    places = {(c.task, a.strategy): rank for c in reversed(conditions) for rank, a in enumerate(c.areas)}
    for task, label in sorted(places, key=lambda place: places[place]):  # the best of each task first
        kept_or_why = tasks[task][label]
        if not isinstance(kept_or_why, str):
            grid = _grid(label, kept_or_why, images, looks[label])
            if len(grids) >= _GRIDS and sum(map(len, grids.values())) + len(grid) > _MOST_HTML:
                tasks[task][label] = "the page would be too large"
            else:
                grids[task, label] = grid
    body = []
    for task, strategies in tasks.items():
        body.append(f"<h3>{escape(task)}</h3>" if len(tasks) > 1 else "")
        for why in dict.fromkeys(reason for reason in strategies.values() if isinstance(reason, str)):
            lacking = ", ".join(label for label, reason in strategies.items() if reason == why)
            body.append(f'<p class="small">No pictures of {escape(lacking)}: {why}.</p>')
        body.append(
            f'<div class="grids">{"".join(grids[task, label] for label in strategies if (task, label) in grids)}</div>'
        )
    intro = (
        '<p class="small">Images of the report split, chosen by place alone: the first of each class as they come, then the '
        "second of each. In the middle what the attack adds, around grey and enlarged. Below an image the class that the "
        "model sees and how sure it is (softmax). Images that are wrong when clean are not attacked. Pixels and answers are "
        "those of the evaluation at the last point of training of one run each; the drawing rounds pixels to 8 bits.</p>"
    )
    return card(
        "pictures",
        "What the attack does",
        (intro if count else "") + "".join(body),
        folded=folded if count else None,
    )


def card(place: str, title: str, body: str, *, folded: bool | None) -> Part:
    """A section of the page without plots.

    Args:
        place: id of the heading.
        title: the heading.
        body: trusted HTML.
        folded: whether it starts folded to its heading; None if it cannot be folded.
    """
    inside = f'<h2 id="{place}">{title}</h2>'
    if folded is None:
        inside += body
    else:
        inside = (
            f'<details class="fold" {"" if folded else "open"}><summary>{inside}</summary>{body}</details>'
        )
    return Part(f'<section class="card" aria-labelledby="{place}">{inside}</section>', {})


def png(image: Image) -> bytes:
    """A picture of 8 bits a channel; grey where all channels are equal.

    Args:
        image: in [0, 1], shape ``(1 or 3, height, width)``.
    """
    if (image == image[0]).all():
        image = image[:1]
    channels, height, width = image.shape
    pixels = np.rint(255 * image.astype(np.float64)).astype(np.uint8).transpose(1, 2, 0)
    lines = np.zeros((height, 1 + channels * width), dtype=np.uint8)  # each begins with 0: no filter
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def amplified(changes: Image) -> tuple[Image, float]:
    """Changes around grey, enlarged until the largest just fits, and the factor that did it: 1 where nothing changed."""
    largest = float(np.abs(changes).max())
    factor = 0.5 / largest if largest else 1.0
    return np.clip(0.5 + factor * changes, 0, 1).astype(np.float32), factor


def _kept(run: Run) -> _Kept | None:
    kept = run.examples()
    return _Kept(run, kept, kept.pictures) if kept is not None and kept.pictures is not None else None


def _why_not(run: Run) -> str:
    if run.examples() is None:
        return "the run kept none, as older versions did"
    return "the images are too large to keep" if run.done else "the run is not finished"


def _grid(label: str, kept: _Kept, images: int, style: Style) -> str:
    """Rows are images; columns are clean, added, attacked."""
    pictures, classes = kept.pictures, kept.examples.classes
    clean, attacked = pictures.clean[:images], pictures.attacked[:images]
    added, factor = amplified(attacked - clean)
    rows: list[tuple[str, ...]] = []
    for number, place in enumerate(pictures.places[:images]):
        true = int(kept.examples.labels[place])
        name = classes[true]
        before, after = (_said(classes, true, pictures, when, number) for when in (0, 1))
        first = _image(clean[number], f"{name}, clean; the model says {before[1]}") + before[0]
        if pictures.predicted[0, number] != true:
            rows.append((_heading(name, int(place)), first, "–", '<span class="said">not attacked</span>'))
            continue
        middle = _image(added[number], f"What the attack adds to {name}, times {factor:g}")
        last = _image(attacked[number], f"{name}, attacked; the model says {after[1]}") + after[0]
        rows.append((_heading(name, int(place)), first, middle, last))
    shown = table(
        f"{label}: images under attack", ["Class", "Clean", f"Added × {factor:.3g}", "Attacked"], rows
    )
    return (
        f"<figure><figcaption>{symbol(style)} {escape(label)} "
        f'<span class="small">seed {escape(str(kept.run.config["seed"]))}, step {pictures.step}, '
        f"{escape(attack_text(pictures.attack))}</span></figcaption>"
        f'<div class="pictures">{shown}</div></figure>'
    )


def _heading(name: str, place: int) -> str:
    return f'<span title="place {place} of the report split">{escape(name)}</span>'


def _said(classes: Sequence[str], true: int, pictures: Pictures, when: int, number: int) -> tuple[str, str]:
    """What the model says of an image, as HTML and as words."""
    guess, sure = int(pictures.predicted[when, number]), float(pictures.confidence[when, number])
    right, name = guess == true, classes[guess]
    text = f"{name} · {sure:.0%}"
    kind = "said" if right else "said wrong"
    return f'<span class="{kind}">{"✓" if right else "✗"} {escape(text)}</span>', text


def _image(image: Image, described: str) -> str:
    height, width = image.shape[1:]
    sharp = ' class="sharp"' if width < _SHARP else ""
    content = base64.b64encode(png(image)).decode()
    return f'<img{sharp} alt="{escape(described)}" width="{width}" height="{height}" src="data:image/png;base64,{content}">'
