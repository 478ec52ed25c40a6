"""The data that an adapter was trained on, as it says itself, and how other data relates to it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paretune._values import told

if TYPE_CHECKING:
    from paretune.backbones.backbone import Backbone
    from paretune.data.images import ImageData


def load_recorded(
    adapter: str,
    config: Mapping[str, Any],
    model: "Backbone",
    *,
    data: str | None = None,
    root: str | None = None,
    columns: str | None = None,
    skip_bad: bool = False,
    limit: int | Literal["all"] | None = None,
    seed: int | None = None,
    domain: str | None = None,
) -> "ImageData":
    """The data to measure an adapter on: what it was trained on, unless something else is wanted.

    Where other images are measured than its run reported, a note on standard error says so. Data that has changed since is
    measured only if it is named.

    Args:
        adapter: what to call it.
        config: content of its ``paretune.json``.
        model: carries it.
        data: name or folder; None is what the adapter says, here and below.
        root: where torchvision keeps its data sets, or where the paths of a table start.
        columns: of a table, see :func:`~paretune.data.tables.read_columns`.
        skip_bad: leave out images that cannot be read; False is what the adapter says.
        limit: number of images over all splits.
        seed: of the splits.
        domain: that will be measured, of those elsewhere; None for the report split.

    Raises:
        ValueError: nobody says which data, it has other classes than the adapter, it has changed, there is no such domain
            elsewhere, or the adapter was trained on some of the images that would be measured.
        FileNotFoundError: what the adapter was trained on is not where it was.
    """
    from paretune.data.images import check_same_classes, load_data
    from paretune.data.tables import read_columns

    notes = _mapping(_mapping(config.get("notes")).get("data"))
    recorded = _mapping(notes.get("loaded_with"))
    name = recorded.get("name_or_path") if data is None else data
    if data is None and (tasks := _mapping(notes.get("tasks"))):
        raise ValueError(
            f"{adapter} has the heads of several tasks; name that of one: {', '.join(f'{adapter}/{task}' for task in tasks)}"
        )
    if not isinstance(name, str):
        called = f", called {notes['name']!r}," if "name" in notes else ""
        raise ValueError(
            f"{adapter} does not say where the images{called} are that it was trained on; pass --data with digits, "
            "fashion-mnist, cifar10, cifar100, emoji, a folder of class folders, a CSV file of paths and labels, or hf:NAME"
        )
    trained: dict[str, Any] = {"img_size": model.image_size, "limit": None, "seed": 0}
    known = (*trained, "splits", "root", "name", "classes", "columns", "skip_bad", "train_domains")
    trained |= {key: recorded[key] for key in known if key in recorded}
    moved = Path(name).name == Path(str(recorded.get("name_or_path"))).name  # or where it was
    if (
        trained.get("train_domains") and domain is None and not moved
    ):  # other data, which need not be in domains
        named = _mapping(trained.get("columns"))
        trained |= {
            "train_domains": None,
            "columns": {what: named[what] for what in named if what != "domain"},
        }
    trained |= {"root": root} if root is not None else {}
    if columns is not None:
        with told("columns", columns):
            trained["columns"] = read_columns(columns)
    trained |= {"skip_bad": True} if skip_bad else {}
    asked = trained | ({"seed": seed} if seed is not None else {})
    asked |= {"limit": None if limit == "all" else limit} if limit is not None else {}
    try:
        with told("data", data):
            measured = load_data(name, **asked)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"what {adapter} was trained on is not here: {error}; pass --data or --data-root with where it is now"
        ) from None
    check_same_classes(model.num_classes, model.classes, measured.classes)
    if domain is not None and domain not in measured.elsewhere:
        learnt = domain in (trained.get("train_domains") or ())
        why = (
            "it was trained on: leave --domain out to measure its report split" if learnt else "there is none"
        )
        names = ", ".join(measured.elsewhere) or "nothing"
        raise ValueError(f"domain={domain!r} is not elsewhere, {why}. Elsewhere in {measured.name}: {names}")
    original = measured if asked == trained else load_data(name, **trained)
    if original.fingerprint != notes.get("fingerprint"):
        why = f"{name} differs from the data that the adapter was trained on"
        if "fingerprint" not in notes:
            why = "the adapter does not say which images it was trained on"
        if data is None:
            raise ValueError(
                f"{why}: it is split otherwise now, so that images which were learnt would be measured. Restore it, or pass "
                f"--data {name} to measure it all the same"
            )
        _say(f"{why}; some of the {len(measured.report)} images that are measured may be among those")
        return measured
    seen = set(original.train.ids.tolist()) & set(measured.report.ids.tolist())
    if seen:
        raise ValueError(
            f"the adapter was trained on {len(seen)} of the {len(measured.report)} images that --split-seed {asked['seed']} "
            f"would measure; leave it out, or give {trained['seed']}, with which it was trained"
        )
    if domain is None and measured.report.fingerprint != original.report.fingerprint:
        _say(
            f"{len(measured.report)} images are measured, not the {len(original.report)} that the run of the adapter "
            "reports; it was trained on none of them"
        )
    return measured


def _mapping(value: object) -> Mapping[str, Any]:
    """Notes are free; what is no mapping says nothing."""
    return value if isinstance(value, Mapping) else {}


def _say(note: str) -> None:
    print(f"paretune: note: {note}", file=sys.stderr)
