"""Changes of colour, and what storing an image does to it: brightness, contrast, saturation, JPEG and pixelation."""

from io import BytesIO

import numpy as np
import PIL.Image

from paretune.shifts.corruptions.base import Image, Random, Version, from_levels, levels

_BRIGHTNESS = {"224": (0.1, 0.2, 0.3, 0.4, 0.5), "32": (0.05, 0.1, 0.15, 0.2, 0.3)}
_CONTRAST = {"224": (0.4, 0.3, 0.2, 0.1, 0.05), "32": (0.75, 0.5, 0.4, 0.3, 0.15)}
_SATURATE = {  # factor, what is added
    "224": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "32": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
_JPEG = {"224": (25, 18, 15, 10, 7), "32": (80, 65, 58, 50, 40)}
_PIXELATE = {"224": (0.6, 0.5, 0.4, 0.3, 0.25), "32": (0.95, 0.9, 0.85, 0.75, 0.65)}


def brightness(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Adds 0.1 to 0.5 (version 32: 0.05 to 0.3) to the value of each pixel, as HSV has it."""
    hue, saturation, value = hsv(image)
    return rgb(hue, saturation, np.clip(value + _BRIGHTNESS[version][severity - 1], 0, 1))


def contrast(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Draws each channel towards its mean over the image: 0.4 to 0.05 of the difference stay (version 32: 0.75 to 0.15)."""
    means = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray(np.clip((image - means) * _CONTRAST[version][severity - 1] + means, 0, 1))


def saturate(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Less saturation at severities 1 and 2, more at 3 to 5, as HSV has it."""
    factor, more = _SATURATE[version][severity - 1]
    hue, saturation, value = hsv(image)
    return rgb(hue, np.clip(saturation * factor + more, 0, 1), value)


def jpeg_compression(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """JPEG of a quality of 25 down to 7 (version 32: 80 to 40), written and read by Pillow.

    Pillow has libjpeg-turbo since version 9. With libjpeg 9, which it had before, colours bleed otherwise.
    """
    file = BytesIO()
    PIL.Image.fromarray(levels(image)).save(file, "JPEG", quality=_JPEG[version][severity - 1])
    with PIL.Image.open(file) as stored:
        return from_levels(np.asarray(stored))


def pixelate(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Shrinks the sides to 0.6 down to 0.25 (version 32: 0.95 to 0.65) and enlarges them again, with Pillow's box filter."""
    share = _PIXELATE[version][severity - 1]
    height, width = image.shape[:2]
    small = PIL.Image.fromarray(levels(image)).resize(
        (int(width * share), int(height * share)), PIL.Image.Resampling.BOX
    )
    return from_levels(np.asarray(small.resize((width, height), PIL.Image.Resampling.BOX)))


def hsv(image: Image) -> tuple[Image, Image, Image]:
    """Hue, saturation and value in [0, 1], (height, width) each, with the arithmetic of ``skimage.color.rgb2hsv``."""
    red, green, blue = np.moveaxis(image, -1, 0)
    value = image.max(-1)
    span = value - image.min(-1)
    some = np.where(span == 0, 1, span)
    saturation = np.where(span == 0, 0, span / np.where(value == 0, 1, value))
    hue = np.where(red == value, (green - blue) / some, 0.0)
    hue = np.where(green == value, 2 + (blue - red) / some, hue)
    hue = np.where(blue == value, 4 + (red - green) / some, hue)
    return np.where(span == 0, 0, hue / 6 % 1), saturation, value


def rgb(hue: Image, saturation: Image, value: Image) -> Image:
    """The image (height, width, 3) of hue, saturation and value, with the arithmetic of ``skimage.color.hsv2rgb``."""
    sixth = np.floor(hue * 6)
    rest = hue * 6 - sixth
    low = value * (1 - saturation)
    falling, rising = value * (1 - rest * saturation), value * (1 - (1 - rest) * saturation)
    which = sixth.astype(np.intp) % 6
    channels = (
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    return np.clip(np.stack([np.choose(which, options) for options in channels], axis=-1), 0, 1)
