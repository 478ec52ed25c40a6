"""Emoji, drawn by several houses: the same things in several styles, from packages that npm installs.

A small real task of domain shift at 64 pixels, of the kind of DomainNet: what was learnt of one house's pictures is measured
on another's. Classes are eight of the categories of Unicode, with these numbers of emoji, each with one picture in a style:

    People & Body 386, Objects 264, Symbols 224, Travel & Places 218, Smileys & Emotion 169, Animals & Nature 159,
    Food & Drink 131, Activities 85; together 1,636

Flags are left out, as all houses draw the same ones, and so are skin tones. The styles, and the licences of their pictures:

- ``google`` is Noto Emoji, Apache 2.0, in ``emoji-datasource-google``;
- ``twitter`` is Twemoji, CC BY 4.0, in ``emoji-datasource-twitter``; both packages (MIT) are of Cal Henderson;
- ``fluent`` is Fluent Emoji 3D of Microsoft, MIT, in ``@lobehub/fluent-emoji-3d`` (MIT), whose 256 pixels are brought to 64.
  It need not be there, and lacks 39 of the emoji: 37 that are newer, and two cats of different classes with one picture.

Apple's pictures are not free, and what may be done with Facebook's is not said, so that these are not read. OpenMoji (CC
BY-SA 4.0) comes as SVG alone.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretune.data.parts import Part
from paretune.data.pixels import LazyPixels
from paretune.data.sources import digest

#: The side of the pictures in pixels.
SIDE = 64
CLASSES = (
    "Activities", "Animals & Nature", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion", "Symbols",
    "Travel & Places",
)  # fmt: skip
#: Folders of the styles below ``node_modules``; in the first two is the list of all emoji.
PACKAGES = {
    "google": "emoji-datasource-google",
    "twitter": "emoji-datasource-twitter",
    "fluent": "@lobehub/fluent-emoji-3d",
}
_LISTED = ("google", "twitter")
_INSTALL = "npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0"
_PERSON = {"1f468", "1f469", "1f9d1"}  # man, woman, adult
_VARIANT = {
    *_PERSON,
    "2640",
    "2642",
    "27a1",
    "200d",
    "fe0f",
}  # signs of gender, of direction, and what joins them


class _Emoji(NamedTuple):
    """One emoji.

    Attributes:
        code: its code points, as the names of files have them.
        category: its class.
        group: what it is a variant of.
    """

    code: str
    category: str
    group: str


def emoji_styles(root: Path | None) -> dict[str, Callable[[], dict[str, Part]]]:
    """What reads the pictures of each style that is installed.

    Emoji that differ in gender or direction alone are one group, and so are all families, since houses draw some of them
    with one and the same picture.

    Args:
        root: A folder with the packages or with ``node_modules``; None is the working directory.

    Raises:
        FileNotFoundError: ``google`` or ``twitter`` is not there.
        ValueError: These two are of different versions, or damaged.
    """
    places = [root, root / "node_modules"] if root is not None else [Path("node_modules")]
    packages = {
        style: folder
        for style, package in PACKAGES.items()
        for folder in [place / package for place in places if (place / package).is_dir()][:1]
    }
    if missing := [PACKAGES[style] for style in _LISTED if style not in packages]:
        raise FileNotFoundError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {' or '.join(map(str, places))}; "
            f"install the pictures there with `{_INSTALL}`, or pass the root= (--data-root) of a folder that has them"
        )
    first, second = ({*_listed(packages[style], style)} for style in _LISTED)
    if first != second:
        raise ValueError(
            f"{packages['google']} and {packages['twitter']} list other emoji ({min(first ^ second).code} is one): they are "
            f"of different versions; `{_INSTALL}`"
        )
    return {style: partial(_read, style, folder, sorted(first)) for style, folder in packages.items()}


def _listed(package: Path, style: str) -> list[_Emoji]:
    """The emoji of our classes that a package has a picture of."""
    path = package / "emoji.json"
    try:
        entries = json.loads(path.read_text("utf-8"))
        return [
            _Emoji(Path(entry["image"]).stem, entry["category"], _group(entry))
            for entry in entries
            if entry["category"] in CLASSES and entry[f"has_img_{style}"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of emoji ({type(error).__name__}: {error}); install it again: `{_INSTALL}`"
        ) from None


def _group(entry: dict[str, str]) -> str:
    """What an emoji of the list is a variant of: its code points without those of gender and direction."""
    if entry["subcategory"] == "family" or entry["name"].startswith("FAMILY"):
        return "family"
    codes = entry["unified"].lower().split("-")
    rest = [code for code in codes if code not in _VARIANT]
    if _PERSON.intersection(codes):
        return " ".join(["person", *rest])
    return " ".join(rest) or codes[0]


def _read(style: str, package: Path, catalogue: list[_Emoji]) -> dict[str, Part]:
    """The pictures of one style, in memory, in the order of the catalogue."""
    from PIL import Image, ImageOps

    pictures: dict[_Emoji, bytes] = {}
    for emoji in catalogue:
        file = package / (
            f"assets/{emoji.code}.webp" if style == "fluent" else f"img/{style}/{SIDE}/{emoji.code}.png"
        )
        if style == "fluent" and not file.exists():
            continue
        try:
            with Image.open(file) as opened:
                picture = opened.convert("RGBA")
        except OSError as error:
            raise ValueError(f"cannot read {file} ({error}); install {PACKAGES[style]} again") from None
        white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        # In whole numbers, so that all machines have the same bytes.
        white = ImageOps.pad(white, (SIDE, SIDE), color="white")
        pictures[emoji] = white.tobytes()
    classes_of: dict[bytes, set[str]] = {}
    for emoji, picture in pictures.items():
        classes_of.setdefault(picture, set()).add(emoji.category)
    known = [emoji for emoji, picture in pictures.items() if len(classes_of[picture]) == 1]
    if not known:
        raise ValueError(f"{package} has no picture of an emoji; install {PACKAGES[style]} again")
    stored = np.frombuffer(b"".join(pictures[emoji] for emoji in known), np.uint8)
    images = torch.from_numpy(stored.reshape(-1, SIDE, SIDE, 3).copy()).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([CLASSES.index(emoji.category) for emoji in known])
    groups = tuple(emoji.group for emoji in known)
    part = Part(
        classes=CLASSES,
        labels=labels,
        pixels=LazyPixels(
            partial(_picture, images), partial(_name, style, [emoji.code for emoji in known]), files=False
        ),
        content=digest(repr(groups), labels, images),
        groups=groups,
    )
    return {"train": part}


def _picture(images: Tensor, row: int) -> Tensor:
    return images[row]


def _name(style: str, codes: list[str], row: int) -> str:
    return f"of the emoji {codes[row]} in the style {style}"
