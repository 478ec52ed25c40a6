"""Tasks that share the classes of one model: their labels number its logits, and each has all of them unless said so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData
from paretune.data.splits import ROLES
from paretune.shifts import Shift, shifted_splits
from paretune.shifts.imagenet import wordnet_ids

_IMAGENET = 1000  # classes that WordNet ids in their sorted order number


def common_classes(
    tasks: Mapping[str, ImageData], known: Sequence[str] | None, logits: int
) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its logits.

    Args:
        tasks: by name.
        known: the names, where the model knows them. None takes those of the tasks, which must all have the same; of 1,000
            logits and classes that are WordNet ids those of ImageNet-1k, in their order.
        logits: how many the model has.

    Raises:
        ValueError: the tasks have other classes than the model, or than one another.
    """
    if known is None:
        wordnet = wordnet_ids() if logits == _IMAGENET else ()
        if wordnet and all({*data.classes} <= {*wordnet} for data in tasks.values()):
            return wordnet
        first, *others = tasks
        classes = tasks[first].classes
        for other in others:
            if tasks[other].classes != classes:
                strange = sorted({*classes} ^ {*tasks[other].classes})
                which = f"{strange[0]!r} is a class of one alone" if strange else "their order differs"
                raise ValueError(f"the tasks {first!r} and {other!r} have different classes: {which}")
        if len(classes) != logits:
            raise ValueError(
                f"the model has {logits:,} logits, the tasks {len(classes)} classes ({_some(classes)}), and it is to answer "
                "with them before it is fine-tuned. Train it first (pretrain), or begin with one that was (start)"
            )
        return classes
    for name, data in tasks.items():
        if strange := [one for one in data.classes if one not in known]:
            raise ValueError(
                f"the task {name!r} has the class {strange[0]!r}, which is none of the {len(known):,} that the model "
                f"answers with ({_some(known)}). Leave its images out; or train the model on these classes first "
                "(pretrain), or begin with one that was (start)"
            )
    return tuple(known)


def in_common(name: str, data: ImageData, classes: tuple[str, ...], *, among: bool) -> ImageData:
    """The task with labels that number ``classes``.

    Args:
        name: of the task.
        data: of it.
        classes: of the model.
        among: whether it may lack some; the model then answers with one of those that the task has.

    Raises:
        ValueError: a class is missing.
    """
    splits = {role: getattr(data, role) for role in ROLES}
    numbers = sorted({label for split in splits.values() for label in split.labels.tolist()})
    present = {data.classes[number] for number in numbers}
    missing = [one for one in classes if one not in present]
    if missing and not among:
        raise ValueError(
            f"the task {name!r} has no image of the class {missing[0]!r}{_and_more(missing)}. Add some; or let tasks lack "
            "classes, and the model answer with those of the task that is measured (among)"
        )
    if data.classes == classes and not missing:
        return data
    allowed = None
    if missing:
        allowed = tuple(place for place, one in enumerate(classes) if one in present)
    labelled = {role: split.labelled(classes, among=allowed) for role, split in splits.items()}
    return replace(data, classes=classes, elsewhere={}, **_by_role(labelled))


def versions(data: ImageData, shifts: Sequence[Shift]) -> dict[str, ImageData]:
    """Each shift of ``data`` as a task of its own; all have the same pictures, split alike.

    Raises:
        ValueError: a shift brings other pictures, of which nobody knows that they are not in several splits; or as
            :func:`~paretune.shifts.shifted_splits`.
    """
    tasks: dict[str, dict[str, ImageSplit]] = {}
    for role in ROLES:
        for name, split in shifted_splits(getattr(data, role), shifts).items():
            if not split.paired:
                raise ValueError(
                    f"tasks: {split.shift or name} brings pictures of its own and is no version of those of {data.name!r}: "
                    "put both into a folder of domains, DIR/DOMAIN/CLASS/IMAGE, and give that as data"
                )
            tasks.setdefault(name, {})[role] = split
    return {
        name: replace(data, name=f"{data.name}: {name}", elsewhere={}, loaded_with=None, **_by_role(splits))
        for name, splits in tasks.items()
    }


def check_apart(tasks: Mapping[str, ImageData], pretraining: ImageData, *, held_out: bool) -> None:
    """Refuse tasks that show pictures which measure the task of pretraining, or the other way round, as far as data tells.

    Args:
        tasks: by name.
        pretraining: what the model is or was pretrained on.
        held_out: whether of a task the train split alone is learnt; if not, the pictures of versions of one data set are all
            learnt anyway.

    Raises:
        ValueError: a task has examples of ``pretraining``, which the two split otherwise.
    """
    for name, data in tasks.items():
        # Of several domains there is a digest each.
        if not {*(data.learnt or "").split()} & {*(pretraining.learnt or "").split()}:
            continue
        shared = set(data.train.ids.tolist()) & set(pretraining.report.ids.tolist())
        shared |= set(pretraining.train.ids.tolist()) & set(data.report.ids.tolist())
        same = data.train.shift is None  # the very pictures, and not versions of them
        if same or (held_out and shared):
            what = (
                "is what the model is pretrained on"
                if same
                else "and that of pretraining are split otherwise"
            )
            raise ValueError(
                f"the task {name!r} {what}: some of what is measured would have been learnt. "
                + (
                    "Leave it out of the tasks (domains)"
                    if same
                    else "Load both with the same seed, limit and splits (split_seed, limit)"
                )
            )


def _by_role(splits: Mapping[str, ImageSplit]) -> dict[str, Any]:
    return dict(splits)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _and_more(names: Sequence[str]) -> str:
    return f" (nor of {len(names) - 1} others)" if len(names) > 1 else ""
