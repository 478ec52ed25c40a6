"""Data in domains: what is trained on, selected by and reported is of the named ones, and all else is elsewhere."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData, load_data
from tests.unit.data.test_images import splits_of

DOMAINS = ("art", "photo", "sketch")
CLASSES = ("cat", "dog", "owl")


def write(root: Path, count: int = 24, **fewer: int) -> pd.DataFrame:
    """ROOT/DOMAIN/CLASS/ID.png, whose red is the domain, green the number in it, blue the class; and the table of them."""
    rows = []
    for domain, name in enumerate(DOMAINS):
        for number in range(fewer.get(name, count)):
            file = root / name / CLASSES[number % 3] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (domain, number, number % 3)).save(file)
            rows.append({"path": str(file), "label": CLASSES[number % 3], "domain": name})
    return pd.DataFrame(rows)


def seen(split: ImageSplit) -> list[tuple[str, int]]:
    """Domain and number of each image, in the order of the split; its class is its label."""
    images, labels = split[:]
    pixels = (255 * images[:, :, 0, 0]).round().int().tolist()
    assert [blue for _, _, blue in pixels] == labels.tolist()
    return [(DOMAINS[red], green) for red, green, _ in pixels]


def tensors(domain: int, count: int = 24, classes: int = 3) -> TensorDataset:
    numbers = torch.arange(count)
    pixels = torch.stack([torch.full((count,), domain), numbers, numbers % classes], 1).to(torch.uint8)
    return TensorDataset(pixels[:, :, None, None].expand(-1, -1, 8, 8).contiguous(), numbers % classes)


def of(tmp_path: Path, kind: str, **options: Any) -> ImageData:
    table = write(tmp_path / "pets")
    if kind == "folder":
        return load_data(tmp_path / "pets", **options)
    if kind == "table":
        table.rename(columns={"domain": "style"}).to_csv(tmp_path / "pets.csv", index=False)
        return load_data(tmp_path / "pets.csv", columns={"domain": "style"}, **options)
    if kind == "folders":
        return load_data({name: tmp_path / "pets" / name for name in DOMAINS}, **options)
    return load_data({name: tensors(number) for number, name in enumerate(DOMAINS)}, **options)


@pytest.mark.parametrize("train", [["photo"], ["sketch", "art"]], ids="+".join)
@pytest.mark.parametrize("kind", ["folder", "table", "folders", "tensors"])
def test_splits_are_of_the_named_domains_and_the_others_are_elsewhere(
    tmp_path: Path, kind: str, train: list[str]
) -> None:
    data = of(tmp_path, kind, train_domains=train)
    inside = [example for split in splits_of(data).values() for example in seen(split)]
    assert sorted(inside) == [(domain, number) for domain in sorted(train) for number in range(24)]
    assert [*data.elsewhere] == [domain for domain in DOMAINS if domain not in train]
    for domain, split in data.elsewhere.items():
        assert sorted(seen(split)) == [(domain, number) for number in range(24)]
    every = torch.cat([split.ids for split in (*splits_of(data).values(), *data.elsewhere.values())])
    assert len({*every.tolist()}) == len(every) == 72
    name = {"folder": "pets", "table": "pets"}.get(kind, "domains")
    assert data.name == f"{name}: {'+'.join(train)}"
    assert f"elsewhere={dict.fromkeys(data.elsewhere, 24)}" in repr(data)
    if data.loaded_with is not None:
        assert load_data(**json.loads(json.dumps(data.loaded_with))).fingerprint == data.fingerprint


def test_one_domain_may_be_named_alone(tmp_path: Path) -> None:
    data = of(tmp_path, "folder", train_domains="photo")
    named = load_data(tmp_path / "pets", domain="photo")
    assert (
        data.fingerprint
        == named.fingerprint
        == load_data(tmp_path / "pets", train_domains=["photo"]).fingerprint
    )
    assert data.loaded_with == named.loaded_with
    assert {domain for domain, _ in seen(data.train)} == {"photo"}
    with pytest.raises(ValueError, match="domain='photo' and train_domains='art' are one thing"):
        load_data(tmp_path / "pets", train_domains="art", domain="photo")


def test_where_all_domains_are_trained_on_nothing_is_elsewhere(tmp_path: Path) -> None:
    data = of(tmp_path, "folder", train_domains=DOMAINS)
    assert data.elsewhere == {}
    assert len(data.train) + len(data.select) + len(data.report) == 72


def test_without_train_domains_the_folders_of_domains_are_classes(tmp_path: Path) -> None:
    assert of(tmp_path, "folder").classes == DOMAINS


def test_what_is_elsewhere_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    data = of(tmp_path, "folder", train_domains=["photo"])
    less = replace(data, elsewhere={"art": data.elsewhere["art"]})
    named = replace(data, elsewhere={"night": data.elsewhere["art"]})
    none = replace(data, elsewhere={})
    assert len({each.fingerprint for each in (data, less, named, none)}) == 4
    with pytest.raises(ValueError, match="elsewhere: 'photo' is trained on or selected by"):
        replace(data, elsewhere={"photo": data.select})
    plain = ImageData.from_tensors(torch.rand(30, 3, 8, 8), torch.arange(30) % 3)
    with pytest.raises(ValueError, match=re.escape("elsewhere: 'art' has the classes")):
        replace(plain, elsewhere={"art": data.elsewhere["art"]})


def test_the_seed_moves_no_image_elsewhere_and_a_limit_takes_the_share_of_the_report_split(
    tmp_path: Path,
) -> None:
    data = of(tmp_path, "folder", train_domains=["photo"])
    other = load_data(tmp_path / "pets", train_domains=["photo"], seed=7)
    assert seen(other.train) != seen(data.train)
    assert seen(other.elsewhere["art"]) == seen(data.elsewhere["art"])
    limited = load_data(tmp_path / "pets", train_domains=["photo"], limit=20, splits=(0.4, 0.3, 0.3))
    few = limited.elsewhere["art"]
    assert len(few) == 6
    assert torch.bincount(few.labels).tolist() == [2, 2, 2]
    assert set(seen(few)) < set(seen(data.elsewhere["art"]))


def test_official_test_images_are_measured_where_domains_have_them(tmp_path: Path) -> None:
    table = write(tmp_path / "pets")
    table["split"] = ["test" if row % 24 >= 18 else "train" for row in range(72)]
    data = load_data(table, train_domains=["photo"])
    for domain, split in {"photo": data.report, **data.elsewhere}.items():
        assert sorted(seen(split)) == [(domain, number) for number in range(18, 24)]
    assert {number for _, number in seen(data.train) + seen(data.select)} == set(range(18))
    table.loc[table["domain"] == "art", "split"] = "train"
    assert len(load_data(table, train_domains=["photo"]).elsewhere["art"]) == 24
    with pytest.raises(ValueError, match="'photo' has the splits train, report, and 'art' train; give all"):
        load_data(table, train_domains=["photo", "art"])


def test_images_of_groups_that_are_learnt_or_selected_by_are_left_out_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same animal in three styles: what was drawn after a trained photo says nothing of new animals."""
    table = write(tmp_path / "pets")
    table["group"] = [f"animal {row % 24}" for row in range(72)]
    for limit in (None, 12):
        data = load_data(table, train_domains=["photo"], limit=limit)
        whole = load_data(table, train_domains=["photo"])
        learnt = {number for _, number in seen(whole.train) + seen(whole.select)}
        for domain, split in data.elsewhere.items():
            numbers = {number for _, number in seen(split)}
            assert numbers
            assert not numbers & learnt
            assert split.groups is not None
            assert not set(split.groups.tolist()) & set(data.train.groups.tolist())
            if limit is None:
                assert numbers == set(range(24)) - learnt
                assert f"{len(learnt)} of the 24 images of {domain} are of groups" in caplog.text
    table.loc[table["domain"] == "art", "group"] = f"animal {min(learnt)}"
    with pytest.raises(ValueError, match="all images of 'art' are of groups that are trained on"):
        load_data(table, train_domains=["photo"])


def test_a_domain_elsewhere_may_lack_a_class_and_labels_go_by_names(tmp_path: Path) -> None:
    write(tmp_path / "pets", sketch=2)  # a cat and a dog
    data = load_data(tmp_path / "pets", train_domains=["photo"])
    assert data.classes == CLASSES
    assert sorted(seen(data.elsewhere["sketch"])) == [("sketch", 0), ("sketch", 1)]
    (tmp_path / "pets" / "sketch" / "cat").rename(tmp_path / "pets" / "sketch" / "owl")
    renamed = load_data(tmp_path / "pets", train_domains=["photo"]).elsewhere["sketch"]
    assert sorted(CLASSES[label] for label in renamed.labels) == ["dog", "owl"]
    backwards = load_data(tmp_path / "pets", train_domains=["photo"], classes=CLASSES[::-1])
    assert sorted(CLASSES[::-1][label] for label in backwards.elsewhere["sketch"].labels) == ["dog", "owl"]
    together = load_data(tmp_path / "pets", train_domains=["sketch", "photo"])
    assert together.classes == CLASSES


def test_a_class_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    (tmp_path / "pets" / "sketch" / "owl").rename(tmp_path / "pets" / "sketch" / "zebra")
    with pytest.raises(
        ValueError, match="the domain 'sketch' has the class 'zebra', which is none of cat, dog, owl"
    ):
        load_data(tmp_path / "pets", train_domains=["photo"])
    unnamed = {"photo": tensors(1), "art": tensors(0, classes=4)}
    with pytest.raises(ValueError, match="the domain 'art' has the class '3', which is none of 0, 1, 2"):
        load_data(unnamed, train_domains=["photo"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_domains": ["foto"]},
            "pets has no domain 'foto'; did you mean 'photo'? Domains: art, photo, sketch",
        ),
        ({"train_domains": []}, "train_domains must name at least one domain, each once; got []"),
        ({"train_domains": ["art", "art"]}, "each once; got ['art', 'art']"),
    ],
)
def test_domains_that_are_not_there_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        of(tmp_path, "folder", **options)


def test_what_has_no_domains_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "pets")
    with pytest.raises(ValueError, match="table has no column called domain; its columns are path, label"):
        load_data(table[["path", "label"]], train_domains=["photo"])
    with pytest.raises(ValueError, match="columns names the domain; say which ones to train on"):
        load_data(table, columns={"domain": "domain"})
    with pytest.raises(ValueError, match="is for emoji, a folder DIR/DOMAIN/CLASS/IMAGE"):
        load_data("digits", train_domains=["photo"])
    with pytest.raises(ValueError, match="the domain 'art' is 'digits', which is read by its name alone"):
        load_data({"photo": tensors(1), "art": "digits"}, train_domains=["photo"])
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_data(tmp_path / "gone", train_domains=["photo"])


def test_one_image_in_two_domains_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "pets")
    table["path"] = [table["path"][30 if row == 50 else row] for row in range(72)]
    with pytest.raises(ValueError, match="1 file is in the photo train and in the sketch train part"):
        load_data(table, train_domains=["photo"])
    with pytest.raises(ValueError, match="hold the same examples"):
        load_data({"photo": tensors(1), "art": tensors(1)}, train_domains=["photo"])


def test_named_and_numbered_classes_are_not_mixed_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    mixed = {"photo": tmp_path / "pets" / "photo", "art": tensors(0)}
    with pytest.raises(ValueError, match="the domain 'photo' names its classes and 'art' does not"):
        load_data(mixed, train_domains=["photo"])
    data = load_data(mixed, train_domains=["photo"], classes=CLASSES)
    assert sorted(seen(data.elsewhere["art"])) == [("art", number) for number in range(24)]
    assert data.train.classes == data.elsewhere["art"].classes == CLASSES
