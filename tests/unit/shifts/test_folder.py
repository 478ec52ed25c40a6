"""Folders of shifted images: labels by name, WordNet id or number, masks of classes, and what is refused."""

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import paretune as pt
from paretune._values import from_dict, parse
from paretune.data.image_split import ImageSplit
from paretune.shifts import SHIFTS, Folder
from paretune.shifts.imagenet import class_number, published, wordnet_ids
from tests.unit.attacks.victims import Linear

IDS = wordnet_ids()
LABELS = {
    0: "tench, Tinca tinca",
    1: "goldfish, Carassius auratus",
    517: "crane",
    999: "toilet tissue, toilet paper",
}


def _black(rows: Tensor) -> Tensor:
    return torch.zeros(len(rows), 3, 8, 8)


def split(classes: Sequence[str] | None = IDS, size: int = 2) -> ImageSplit:
    """Black images of a task of these classes, of 8x8 pixels."""
    numbers = torch.arange(size)
    return ImageSplit(numbers % 2, numbers, _black, "clean", None if classes is None else tuple(classes))


def write(root: Path, names: Sequence[str], count: int = 3, start: int = 0, side: int = 8) -> Path:
    """ROOT/NAME/NUMBER.png whose red is the place of the name, and green the number."""
    for place, name in enumerate(names, start=start):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (side, side), (place, number, 0)).save(root / name / f"{number}.png")
    return root


def seen(images: ImageSplit) -> dict[int, int]:
    """The label of each folder, by its place; the same for all images in it."""
    pixels = (255 * images[:][0][:, :, 4, 4]).round().int().tolist()
    pairs = {(red, label) for (red, _, _), label in zip(pixels, images.labels.tolist(), strict=True)}
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def one(shift: Folder, of: ImageSplit) -> tuple[str, ImageSplit]:
    ((name, images),) = shift.of(of).items()
    return name, images


def named(full: bool) -> list[str]:
    from timm.data import ImageNetInfo

    labels = ImageNetInfo().label_descriptions(detailed=False)
    return labels if full else [label.split(", ")[-1].upper() for label in labels]


TASKS = {
    "WordNet ids": IDS,
    "WordNet ids in another order": IDS[::-1],
    "numbers": [str(number) for number in range(1000)],
    "labels": named(True),
    "one word of each": named(False),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", ["v2", "sketch"])
def test_folders_of_imagenet_have_the_numbers_of_the_task(tmp_path: Path, layout: str, task: str) -> None:
    numbers = [0, 1, 9, 10, 517, 999]
    root = write(tmp_path / layout, [str(number) if layout == "v2" else IDS[number] for number in numbers])
    (root / "README.txt").write_text("no folder")
    name, images = one(Folder(root), split(TASKS[task]))
    assert name == layout
    wanted = [999 - number for number in numbers] if "another order" in task else numbers
    assert seen(images) == dict(enumerate(wanted))
    assert (len(images), images.classes, images.among) == (18, tuple(TASKS[task]), None)
    assert (images.paired, images.shift) == (False, f"Folder('{root}')")


def test_where_classes_have_no_names_numbers_stand_for_themselves(tmp_path: Path) -> None:
    assert seen(one(Folder(write(tmp_path / "v2", ["0", "2", "10"])), split(None))[1]) == {0: 0, 1: 2, 2: 10}
    with pytest.raises(ValueError, match=r"'n01440764' is no class of the model \(classes without names\)"):
        Folder(write(tmp_path / "sketch", IDS[:1])).of(split(None))


def test_classes_of_a_task_of_its_own_are_matched_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "night", ["cat", "owl"])
    name, images = one(Folder(root), split(["owl", "dog", "cat"]))
    assert (name, seen(images)) == ("night", {0: 2, 1: 0})
    german = write(tmp_path / "nachts", ["Eule", "Katze", "Maus"])
    classes = {"Eule": "owl", "Katze": 2}
    name, images = one(Folder(german, classes=classes, called="by night"), split(["owl", "dog", "cat"]))
    assert (name, seen(images)) == ("by night", {0: 0, 1: 2})


def test_ten_numbered_classes_are_not_those_of_imagenet() -> None:
    assert class_number("3", [str(number) for number in range(10)]) == 3
    assert class_number("10", [str(number) for number in range(10)]) is None
    assert class_number(IDS[3], [str(number) for number in range(10)]) is None
    assert class_number("crane", IDS) is None  # the bird or the machine
    shuffled = [*named(True)]
    shuffled[5], shuffled[6] = shuffled[6], shuffled[5]
    assert class_number(IDS[0], shuffled) is None
    assert class_number("n99999999", IDS) is None
    assert class_number("1000", IDS) is None


@pytest.mark.parametrize("kind", ["imagenet-a", "imagenet-r"])
def test_the_published_masks_have_200_classes_also_where_the_folder_has_fewer(
    tmp_path: Path, kind: str
) -> None:
    ids = published(kind)
    assert len({*ids}) == 200
    assert {*ids} < {*IDS}
    root = write(tmp_path / kind, ids[:7])
    bare, masked, few = (one(Folder(root, mask=mask), split())[1] for mask in (None, kind, "folders"))
    name, _ = one(Folder(root, mask=kind), split())
    assert name == f"{kind} (among 200)"
    assert masked.among == tuple(sorted(IDS.index(wordnet) for wordnet in ids))
    assert few.among == tuple(sorted(IDS.index(wordnet) for wordnet in ids[:7]))
    assert bare.among is None
    assert (
        seen(bare)
        == seen(masked)
        == seen(few)
        == {place: IDS.index(wordnet) for place, wordnet in enumerate(ids[:7])}
    )
    assert len({bare.fingerprint, masked.fingerprint, few.fingerprint}) == 3
    assert len(one(Folder(root, mask=kind), split(ids))[1].among or ()) == 200


def test_a_model_answers_among_the_mask_clean_and_attacked(tmp_path: Path) -> None:
    """Its bias is for a third class, which takes all images unless the mask leaves it out."""
    root = tmp_path / "two"
    for name, place in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (place + number,) * 3).save(root / name / f"{number}.png")
    model = Linear(3, 3, 8, 8)
    weight = torch.stack([-torch.ones(192), torch.ones(192), torch.zeros(192)]) / 192
    model.load_state_dict({"weight": weight, "bias": torch.tensor([0.5, -0.5, 9.0])})
    attack = pt.PGD(pt.Linf(0.3), steps=2)
    shifts = [Folder(root), Folder(root, mask="folders")]
    scores = pt.evaluate(
        model, split(["dark", "light", "other"]), [attack], shifts=shifts, attack_elsewhere=True
    )
    unmasked, masked = scores.elsewhere["two"], scores.elsewhere["two (among 2)"]
    assert (unmasked.clean_accuracy, masked.clean_accuracy) == (0, 1)
    assert masked.robust_accuracy(attack) == 0.5  # 0.3 takes 200 of 255 below one half, and 40 not above it


@pytest.mark.parametrize("grouped", [True, False])
def test_corruptions_on_disk_are_called_as_those_that_are_computed(tmp_path: Path, grouped: bool) -> None:
    root = tmp_path / "imagenet-c"
    for place, (group, kind) in enumerate((("blur", "defocus_blur"), ("noise", "gaussian_noise"))):
        for severity in (1, 5):
            write(
                (root / group if grouped else root) / kind / str(severity),
                IDS[2:4],
                start=10 * place + severity,
            )
    parts = Folder(root).of(split())
    assert [*parts] == ["defocus_blur 1", "defocus_blur 5", "gaussian_noise 1", "gaussian_noise 5"]
    assert seen(parts["gaussian_noise 5"]) == {15: 2, 16: 3}
    alone = Folder(root / ("noise/gaussian_noise" if grouped else "gaussian_noise"), called="published").of(
        split()
    )
    assert [*alone] == ["published gaussian_noise 1", "published gaussian_noise 5"]
    assert alone["published gaussian_noise 5"].fingerprint == parts["gaussian_noise 5"].fingerprint
    write(root, IDS[:1])
    with pytest.raises(ValueError, match="has corruptions by severity, and 'n01440764', which has none"):
        Folder(root).of(split())


def objectnet(root: Path) -> Path:
    """Its layout: folders of its own names, images with a red border of two pixels, and two mappings."""
    for place, name in enumerate(["alarm_clock", "bench", "chair", "air_freshener"]):
        (root / "images" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (12, 12), (255, 0, 0))
            image.paste((place, number, 0), (2, 2, 10, 10))
            image.save(root / "images" / name / f"{number}.png")
    labels = {
        "alarm_clock": "Alarm clock",
        "bench": "Bench",
        "chair": "Chair",
        "air_freshener": "Air freshener",
    }
    meant = {
        "Alarm clock": "analog clock",
        "Bench": "park bench",
        "Chair": "folding chair; rocking chair, rocker",
    }
    (root / "mappings").mkdir()
    (root / "mappings/folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (root / "mappings/objectnet_to_imagenet_1k.json").write_text(json.dumps(meant))
    return root


def test_objectnet_is_measured_over_all_classes_and_among_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = objectnet(tmp_path / "objectnet-1.0")
    options: dict[str, Any] = {
        "classes": root / "mappings/objectnet_to_imagenet_1k.json", "border": 2, "called": "objectnet",
    }  # fmt: skip
    name, images = one(Folder(root / "images", **options), split())
    assert (name, images.among) == ("objectnet", None)
    assert seen(images) == {0: 409, 1: 703}
    assert "images in 1 of 3 folders are left out, as each is of several classes: chair" in caplog.text
    assert (images[:][0][:, 2] == 0).all()
    assert (images[:][0][:, 0] < 0.1).all()  # no red of the border
    name, masked = one(Folder(root / "images", mask="folders", **options), split())
    assert (name, masked.among) == ("objectnet (among 4)", (409, 559, 703, 765))
    assert seen(masked) == seen(images)


def test_images_come_in_a_random_order_that_is_always_the_same(tmp_path: Path) -> None:
    root = write(tmp_path / "night", ["cat", "owl"], count=40)
    images = one(Folder(root), split(["cat", "owl"]))[1]
    assert images.ids.tolist() != sorted(images.ids.tolist())
    assert sorted(images.ids.tolist()) == [*range(80)]
    assert 5 < int(images.first(20).labels.sum()) < 15
    again = one(Folder(root), split(["cat", "owl"]))[1]
    assert torch.equal(images.ids, again.ids)
    assert images.fingerprint == again.fingerprint
    assert torch.equal(pickle.loads(pickle.dumps(images))[:][0], images[:][0])
    large = ImageSplit(torch.zeros(1), torch.arange(1), _large, "clean", ("cat", "owl"))
    other = one(Folder(root), large)[1]
    assert other[0][0].shape == (3, 12, 16)
    assert other.fingerprint != images.fingerprint
    assert one(Folder(root, border=1), split(["cat", "owl"]))[1].fingerprint != images.fingerprint


def _large(rows: Tensor) -> Tensor:
    return torch.zeros(len(rows), 3, 12, 16)


@pytest.mark.parametrize(
    "shift",
    [
        Folder("a", mask=["cat", "dog"], border=2, called="b"),
        Folder("a", classes={"x": "cat", "y": 3, "z": ["cat", "dog"]}),
        Folder(Path("a/b"), classes=Path("c.json"), mask="imagenet-a"),
    ],
    ids=repr,
)
def test_a_shift_prints_as_the_call_that_makes_it(shift: Folder) -> None:
    assert parse(repr(shift), SHIFTS) == shift
    assert from_dict(json.loads(json.dumps(shift.to_dict())), SHIFTS) == shift
    assert hash(shift) == hash(parse(repr(shift), SHIFTS))


def test_what_no_class_or_no_mask_answers_to_is_named(tmp_path: Path) -> None:
    classes = ["cat", "owl", "dog"]
    root = write(tmp_path / "night", ["cat", "owl"])

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            Folder(options.pop("path", root), **options).of(split(options.pop("of", classes)))

    refused(
        "mask must be 'folders', 'imagenet-a', 'imagenet-r' or names of classes, got 'imagenet-b'",
        mask="imagenet-b",
    )
    refused(
        r"mask='imagenet-r' of .*: 'n01443537' is no class of the model \(cat, owl, dog\)", mask="imagenet-r"
    )
    refused("mask=.*: 'lion' is no class", mask=["cat", "lion"])
    refused(r"night/owl is of a class that mask=\('cat', 'dog'\) leaves out", mask=["cat", "dog"])
    refused("leaves one class, which would always be right", mask=["cat", "cat"])
    refused(
        r"night has none of the folders that classes= names \(Katze\); it has cat, owl",
        classes={"Katze": "cat"},
    )
    refused(r"night/cat: 3 is no class of the model", classes={"cat": 3})
    refused("border must be a whole number from 0 to 1000, got -1", border=-1)
    refused("has no class folders; expected", path=root / "cat")
    (tmp_path / "list.json").write_text("[1]")
    refused(
        "list.json must hold an object with a class for each folder, not list", classes=tmp_path / "list.json"
    )
    (tmp_path / "list.json").write_text("{")
    refused("list.json is no JSON", classes=tmp_path / "list.json")
    (tmp_path / "list.json").write_text('{"cat": "cat; owl"}')
    refused("night has no image of one class of the model", classes=tmp_path / "list.json")
    for missing in ({"path": tmp_path / "gone"}, {"path": root, "classes": "gone.json"}):
        with pytest.raises(FileNotFoundError, match="gone"):
            Folder(**missing).of(split(classes))
    (root / "lion").mkdir()
    refused(r"night/lion: 'lion' is no class of the model \(cat, owl, dog\); remove it, or say with classes=")
    (root / "lion").rename(root / "dog")
    refused("no image lies in .*night/dog; add some, or remove it")


def test_the_command_line_measures_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    from paretune.commands.cli import main

    rng = np.random.default_rng(0)
    for root, count in (("pets", 20), ("night", 5)):
        for name in ("cat", "dog"):
            (tmp_path / root / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / name / f"{number}.png")
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    line = (
        f"train --backbone timm:test_resnet --weights {tmp_path}/w.pth --data {tmp_path}/pets --img-size 32 --batch-size 8 "
        f"--strategy linearprobe --epochs 1 --points 1 --train-steps 0 --eval-steps 1 --out {tmp_path}/run"
    )
    shifts = ["--shifts", f"Folder('{tmp_path}/night'), Folder('{tmp_path}/night', mask=['cat', 'dog'])"]
    assert main([*line.split(), *shifts]) == 0, capsys.readouterr().err
    rows = [json.loads(text) for text in (tmp_path / "run/points.jsonl").read_text().splitlines()]
    elsewhere = rows[-1]["elsewhere"]
    assert {name: part["examples"] for name, part in elsewhere.items()} == {
        "night": 10,
        "night (among 2)": 10,
    }
    assert re.fullmatch(r"Folder\('.*/night', mask=\('cat', 'dog'\)\)", elsewhere["night (among 2)"]["shift"])
    capsys.readouterr()
    line = f"evaluate {tmp_path}/run --weights {tmp_path}/w.pth --epsilons 1/255 --steps 1"
    assert main([*line.split(), *shifts]) == 0, capsys.readouterr().err
    assert "night (among 2)" in capsys.readouterr().out
