"""What an image processor of transformers does to pixels, found by sending it images.

Its settings do not say it: some processors divide by the standard deviation twice, swap red and blue, shift or do not
rescale, each by flags of their own. So it is measured, and told as a mean, a standard deviation and an order of channels,
which is all that a :class:`~paretune.Backbone` does; a processor that does something else is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIDE = 48  # of the images that are sent, in pixels
COLOURS = 24  # images of one colour each, for processors that crop and resize in any case
SAME = 1e-6  # of the largest value: float32 rounding in a processor that divides, shifts and scales
_GEOMETRY = ("do_resize", "do_center_crop", "do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin")


@dataclass(frozen=True)
class Pixels:
    """``(images[:, order] - mean) / std`` of images in [0, 1], with mean and std in the order of the images.

    Args:
        mean: per channel of the images, in their units.
        std: likewise, above 0.
        order: which channel of the images the network takes first, second, …
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: tuple[int, ...]


def pixels_of(processor: Any, channels: int, origin: str) -> Pixels:
    """What ``processor`` does to the pixels of images with ``channels`` channels.

    Args:
        processor: an image processor of transformers.
        channels: of the images that the network takes.
        origin: whose it is, for messages.

    Raises:
        ValueError: it fails, or does what no mean, std and order of channels can express.
    """
    sent, got = _samples(processor, channels, f"{type(processor).__name__} of {origin}")
    largest = max(float(np.abs(got).max()), 1e-9)
    fits = [[_line(sent[:, i], got[:, o]) for i in range(channels)] for o in range(channels)]
    order = tuple(int(np.argmin([distance for _, _, distance in row])) for row in fits)
    slopes, offsets, apart = zip(*(row[i] for row, i in zip(fits, order, strict=True)), strict=True)
    if not max(apart) <= 10 * SAME * largest or sorted(order) != list(range(channels)) or min(slopes) <= 0:
        raise ValueError(
            f"the {type(processor).__name__} of {origin} does to pixels what no mean, std and order of channels can: the "
            f"nearest differs by {max(apart):.3g} of values up to {largest:.3g}, with slopes {_short(slopes)} and channels "
            f"{list(order)}; make the model's input yourself: Backbone(module, mean=, std=, channel_order=)"
        )
    at = [order.index(channel) for channel in range(channels)]
    mean = [-offsets[place] / slopes[place] for place in at]
    std = [1 / slopes[place] for place in at]
    wanted = got[:, at]
    for means, stds in _written_down(processor, mean, std, order):
        if np.abs((sent - means) / stds - wanted).max() <= SAME * largest:
            return Pixels(tuple(means), tuple(stds), order)
    return Pixels(tuple(mean), tuple(std), order)


def _samples(processor: Any, channels: int, who: str) -> tuple[Floats, Floats]:
    """Colours in [0, 1] that were sent, and what came back for each: (samples, channels) both."""
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (3, channels, SIDE, SIDE), dtype=np.uint8)
    noise[1] //= 4  # darker, and lighter than the first, which a standardisation of each image would undo
    noise[2] = 255 - noise[2] // 4
    try:
        still = {name: False for name in _GEOMETRY if hasattr(processor, name)}
        got = _sent(processor, noise, still, who)
    except ValueError:  # it insists on resizing
        got = np.empty(0)
    if got.shape == noise.shape:
        if not np.array_equal(got, _sent(processor, noise, still, who)):
            raise ValueError(f"the {who} is random: it makes other pixels of the same images each time")
        return _columns(noise / 255), _columns(got)
    # It crops or resizes whatever it is told; neither changes a colour.
    colours = draw.integers(0, 256, (COLOURS, channels, 1, 1), dtype=np.uint8)
    got = _sent(processor, np.tile(colours, (1, 1, 2 * SIDE, 2 * SIDE)), {}, who)
    if got.ndim != 4 or got.shape[:2] != colours.shape[:2]:
        raise ValueError(
            f"the {who} makes {got.shape} of images {(COLOURS, channels, 2 * SIDE, 2 * SIDE)}; a Backbone takes images with "
            f"{channels} channels"
        )
    return _columns(colours / 255), _columns(got[:, :, got.shape[2] // 2, got.shape[3] // 2, None, None])


def _sent(processor: Any, images: NDArray[np.uint8], options: dict[str, bool], who: str) -> Floats:
    """``pixel_values`` of images (batch, channels, height, width), which are sent as files are read, channels last."""
    try:
        out = processor([*np.moveaxis(images, 1, -1)], return_tensors="pt", **options)
        return np.asarray(torch.as_tensor(out["pixel_values"]).double())
    except Exception as error:  # a processor may fail in any way, and then cannot be compared
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"the {who} makes no pixel_values of plain images ({reason})") from error


def _columns(images: Any) -> Floats:
    return np.moveaxis(np.asarray(images, dtype=np.float64), 1, -1).reshape(-1, images.shape[1])


def _line(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Slope and offset of the line through the points, and the largest distance from it."""
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset), float(np.abs(slope * x + offset - y).max())


def _written_down(
    processor: Any, mean: list[float], std: list[float], order: tuple[int, ...]
) -> Iterator[tuple[list[float], list[float]]]:
    """Numbers that the measured ones may be roundings of: the processor's own, then ever more digits."""
    recorded = [np.ravel(getattr(processor, name, None) or 0.0) for name in ("image_mean", "image_std")]
    known = all(len(numbers) in (1, len(order)) and np.isfinite(numbers).all() for numbers in recorded)
    if known and recorded[1].all():
        means, stds = (np.broadcast_to(numbers, len(order)).tolist() for numbers in recorded)
        for places in (range(len(order)), order):
            yield [means[place] for place in places], [stds[place] for place in places]
    for digits in range(1, 9):
        yield [round(value, digits) + 0.0 for value in mean], [float(f"{value:.{digits}g}") for value in std]


def _short(values: Any) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
