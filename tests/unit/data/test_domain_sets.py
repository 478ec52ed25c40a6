"""Domain sets as they are published: DomainNet, PACS, Office-Home, VLCS, and tables of the hub with a column of domains."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from paretune.data.image_split import ImageSplit
from paretune.data.images import load_data
from tests.unit.data.test_images import splits_of

PUBLISHED = {
    "PACS": (["art_painting", "cartoon", "photo", "sketch"], ["dog", "elephant", "giraffe", "guitar"]),
    "OfficeHomeDataset": (["Art", "Clipart", "Product", "Real World"], ["Alarm_Clock", "Backpack", "TV"]),
    "VLCS": (["Caltech101", "LabelMe", "SUN09", "VOC2007"], ["bird", "car", "chair", "dog", "person"]),
}
CLASSES = ("The_Eiffel_Tower", "airplane", "zebra")
NUMBERS = {"airplane": 0, "The_Eiffel_Tower": 1, "zebra": 2}


def write(root: Path, domains: list[str], classes: list[str], count: int = 6, suffix: str = ".jpg") -> Path:
    """ROOT/DOMAIN/CLASS/NUMBER.jpg; grey says domain, class and number."""
    for domain, name in enumerate(domains):
        for label, kind in enumerate(classes):
            (root / name / kind).mkdir(parents=True)
            for number in range(count):
                grey = 60 * domain + 12 * label + number
                Image.new("L", (8, 8), grey).save(root / name / kind / f"{number:03}{suffix}")
    return root


def seen(split: ImageSplit) -> list[int]:
    greys: list[int] = (255 * split[:][0][:, 0, 0, 0]).round().int().tolist()
    assert [grey % 60 // 12 for grey in greys] == split.labels.tolist()
    return sorted(greys)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    domains, classes = PUBLISHED[name]
    root = write(tmp_path / name, domains, classes)
    (root / "ImageInfo.csv").write_text("of Office-Home")
    data = load_data(root, train_domains=domains[-1])
    assert (data.name, data.classes) == (f"{name}: {domains[-1]}", tuple(classes))
    assert [*data.elsewhere] == domains[:-1]
    for place, domain in enumerate(domains[:-1]):
        assert seen(data.elsewhere[domain]) == [
            60 * place + 12 * label + number for label in range(len(classes)) for number in range(6)
        ]


def domain_net(root: Path, test: int = 2) -> Path:
    """Three domains with lists; the first images of each class are the official test ones."""
    domains = ["clipart", "real", "sketch"]
    write(root, domains, [*CLASSES], suffix=".png")
    for domain in domains:
        for split, numbers in (("train", range(test, 6)), ("test", range(test))):
            lines = [
                f"{domain}/{name}/{number:03}.png {NUMBERS[name]}" for name in CLASSES for number in numbers
            ]
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_lists_of_domainnet_split_its_domains_and_number_its_classes(tmp_path: Path) -> None:
    data = load_data(domain_net(tmp_path / "DomainNet"), train_domains="real")
    assert data.classes == (
        "airplane",
        "The_Eiffel_Tower",
        "zebra",
    )  # as the numbers say, not as the folders sort
    numbers = {role: sorted({grey % 12 for grey in greys(split)}) for role, split in splits_of(data).items()}
    assert numbers["report"] == [0, 1]
    assert {*numbers["train"], *numbers["select"]} == {2, 3, 4, 5}
    assert [*data.elsewhere] == ["clipart", "sketch"]
    for place, split in zip((0, 2), data.elsewhere.values(), strict=True):
        assert sorted(greys(split)) == [
            60 * place + 12 * label + number for label in range(3) for number in (0, 1)
        ]
    assert torch.bincount(data.report.labels).tolist() == [2, 2, 2]
    towers = [
        grey % 60 // 12
        for grey, label in zip(greys(data.report), data.report.labels, strict=True)
        if label == 1
    ]
    assert {*towers} == {0}


def greys(split: ImageSplit) -> list[int]:
    values: list[int] = (255 * split[:][0][:, 0, 0, 0]).round().int().tolist()
    return values


def test_images_in_no_list_are_left_out(tmp_path: Path) -> None:
    root = domain_net(tmp_path / "DomainNet")
    Image.new("L", (8, 8), 251).save(root / "real" / "zebra" / "999.png")
    data = load_data(root, train_domains="real")
    assert 251 not in [grey for split in splits_of(data).values() for grey in greys(split)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "real_test.txt").unlink(),
            r"real_test.txt is missing, the other list of the domain 'real'",
        ),
        (
            lambda root: append(root, "real/zebra/000.png"),
            r"line 7 of .*real_test.txt is 'real/zebra/000.png', not real/CLASS",
        ),
        (
            lambda root: append(root, "clipart/zebra/000.png 2"),
            r"line 7 of .* is 'clipart/zebra/000.png 2', not real/CLASS",
        ),
        (
            lambda root: append(root, "real/zebra/009.png 0"),
            r"line 7 of .*real_test.txt gives 'zebra' the number 0; it is 2",
        ),
        (lambda root: append(root, "real/lion/009.png 2"), r"give 'zebra' and 'lion' the number 2"),
        (
            lambda root: append(root, "real/zebra/009.png 2"),
            r"cannot read 1 of .*009.png \(it does not exist\)",
        ),
        (
            lambda root: append(root, "real/zebra/003.png 2"),
            r"names 1 files more than once: real/zebra/003.png",
        ),
    ],
)
def test_lists_that_are_wrong_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    root = domain_net(tmp_path / "DomainNet")
    change(root)
    with pytest.raises(ValueError, match=message):
        load_data(root, train_domains="real")


def append(root: Path, line: str) -> None:
    with open(root / "real_test.txt", "a") as file:
        file.write(line + "\n")


def test_a_trained_domain_without_a_class_is_told_by_name(tmp_path: Path) -> None:
    """Of DomainNet, no painting of a t-shirt is to be trained on."""
    root = domain_net(tmp_path / "DomainNet")
    kept = [line for line in (root / "real_train.txt").read_text().splitlines() if "zebra" not in line]
    (root / "real_train.txt").write_text("\n".join(kept))
    with pytest.raises(
        ValueError,
        match=r"class 'zebra' \(label 2\) of 'DomainNet: real' has 0 examples for train and select",
    ):
        load_data(root, train_domains="real")
    assert len(load_data(root, train_domains="clipart").elsewhere["real"]) == 6


def hub_set(count: int, red: int, *, domain: Any = None, column: str = "domain") -> Any:
    datasets = pytest.importorskip("datasets")
    names = ["photo", "sketch", "art"]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            column: domain or datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog", "owl"]),
        }
    )
    places = [row // 3 % 3 for row in range(count)]
    rows = {
        "image": [Image.new("RGB", (8, 8), (red, places[row], row % 3)) for row in range(count)],
        column: places if domain else [names[place] for place in places],
        "label": [row % 3 for row in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["hub", "dict", "one"])
def test_a_column_of_the_hub_tells_domains(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    given: Any = hub_set(180, 0)
    if kind != "one":
        given = datasets.DatasetDict({"train": given, "test": hub_set(45, 1)})
    if kind == "hub":
        for split, part in given.items():
            part.to_parquet(tmp_path / "pets" / "data" / f"{split}-0.parquet")
        given = f"hf:{tmp_path / 'pets'}"
    data = load_data(given, train_domains="sketch")
    assert [*data.elsewhere] == ["photo", "art"]
    for place, split in zip((1, 0, 2), (data.train, *data.elsewhere.values()), strict=True):
        pixels = (255 * split[:][0][:, :, 0, 0]).round().int()
        assert {*pixels[:, 1].tolist()} == {place}
        assert pixels[:, 2].tolist() == split.labels.tolist()
    if kind == "hub":
        assert load_data(**json.loads(json.dumps(data.loaded_with))).fingerprint == data.fingerprint
    tested = kind != "one"
    assert {*(255 * data.report[:][0][:, 0, 0, 0]).round().int().tolist()} == {int(tested)}
    assert [len(split) for split in data.elsewhere.values()] == [15, 15] if tested else [60, 60]
    assert len(data.report) == 15


def test_the_column_may_be_named_and_hold_numbers_of_names() -> None:
    datasets = pytest.importorskip("datasets")
    numbered = hub_set(90, 0, domain=datasets.ClassLabel(names=["photo", "sketch", "art"]), column="style")
    data = load_data(numbered, train_domains=["photo", "art"], columns={"domain": "style"})
    assert [*data.elsewhere] == ["sketch"]
    with pytest.raises(
        ValueError, match=r"\(train\) has no columns of domains; its columns are image, style, label\. Say"
    ):
        load_data(numbered, train_domains="photo")
    with pytest.raises(ValueError, match=r"has no columns called 'house'"):
        load_data(numbered, train_domains="photo", columns={"domain": "house"})
    with pytest.raises(ValueError, match=re.escape("has no domain 'foto'; did you mean 'photo'?")):
        load_data(numbered, train_domains="foto", columns={"domain": "style"})
    gap = hub_set(90, 0).map(
        lambda row, place: {"domain": None if place == 7 else row["domain"]}, with_indices=True
    )
    with pytest.raises(ValueError, match=r"column 'domain' has None in row 7; name all of them"):
        load_data(gap, train_domains="photo")
