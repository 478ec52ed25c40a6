"""Which class of a task a name of ImageNet stands for: WordNet ids, numbers and labels of its classes, as timm has them."""

import importlib.resources
import re
from collections.abc import Sequence
from functools import cache

#: Published sets of 200 of the 1,000 classes, among which ImageNet-A and ImageNet-R are measured (Hendrycks et al. 2021,
#: https://arxiv.org/abs/1907.07174 and https://arxiv.org/abs/2006.16241).
MASKS = ("imagenet-a", "imagenet-r")
_WORDNET = re.compile(r"n\d{8}")


@cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes of ILSVRC 2012 in the order of logits, which is also theirs by name."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def _labels() -> tuple[str, ...]:
    """Their labels, such as ``tench, Tinca tinca``."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions(detailed=False))


@cache
def published(mask: str) -> tuple[str, ...]:
    """The WordNet ids of a set in ``MASKS``."""
    file = importlib.resources.files("timm.data").joinpath("_info", f"{mask.replace('-', '_')}_synsets.txt")
    return tuple(file.read_text("utf-8").split())


def class_number(name: str, classes: Sequence[str] | None) -> int | None:
    """The number among ``classes`` that a name stands for; None if it stands for none.

    It is one of them by itself. Or it is a class of ImageNet, by its WordNet id, its number or its label, and so are these:
    WordNet ids in any order, or all 1,000 classes in that of ImageNet, by numbers or by names that timm knows.

    Args:
        name: A name, a WordNet id, or a number from 0 to 999.
        classes: Names of the classes of the task, whose logits are so numbered. Where nobody named them, None, a number
            stands for itself.
    """
    if classes is None:
        return int(name) if name.isdecimal() else None
    if name in classes:
        return list(classes).index(name)
    number = _imagenet_number(name)
    if number is None:
        return None
    if (wordnet := wordnet_ids()[number]) in classes:
        return list(classes).index(wordnet)
    return number if _in_the_order_of_imagenet(tuple(classes)) else None


def _imagenet_number(name: str) -> int | None:
    if _WORDNET.fullmatch(name):
        return wordnet_ids().index(name) if name in wordnet_ids() else None
    if name.isdecimal():
        return int(name) if int(name) < len(wordnet_ids()) else None
    same = [number for number, label in enumerate(_labels()) if label == name]
    return same[0] if len(same) == 1 else None  # there are two cranes


@cache
def _in_the_order_of_imagenet(classes: tuple[str, ...]) -> bool:
    if len(classes) != len(wordnet_ids()):
        return False
    return all(
        name in (str(number), label) or name.casefold() in label.casefold().split(", ")
        for number, (name, label) in enumerate(zip(classes, _labels(), strict=True))
    )
