"""Data sets of torch, torchvision and Hugging Face: lazily, whatever their labels and images look like, or refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

import paretune as pt
from paretune.data.images import ImageData, as_split, load_data
from paretune.training import Natural
from tests import tiny
from tests.unit.data.test_images import noise, read_all, splits_of

CLASSES = ["cat", "dog", "owl"]
PIXELS = (noise(30, 3, 8, 8) * 255).to(torch.uint8)


class Pets(Dataset[Any]):
    """Images and labels as the functions make them; counts what is read."""

    def __init__(
        self,
        image: Callable[[int], Any] = PIXELS.__getitem__,
        label: Callable[[int], Any] = lambda row: row % 3,
        count: int = 30,
        **attributes: Any,
    ) -> None:
        self.image, self.label, self.count, self.reads = image, label, count, 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        self.reads += 1
        return self.image(row), self.label(row)


def pil(row: int) -> Image.Image:
    return Image.fromarray(PIXELS[row].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "image",
    [
        pil,
        PIXELS.__getitem__,
        lambda row: PIXELS[row] / 255,
        lambda row: (PIXELS[row] / 255).double(),
        lambda row: PIXELS[row].permute(1, 2, 0).numpy(),
    ],
    ids=["PIL", "bytes", "floats", "doubles", "array"],
)
def test_images_of_any_kind_are_the_same(image: Callable[[int], Any]) -> None:
    data = load_data(Pets(image, classes=CLASSES))
    held = ImageData.from_tensors(PIXELS, torch.arange(30) % 3, CLASSES)
    assert (data.name, data.classes, data.loaded_with) == ("Pets", ("cat", "dog", "owl"), None)
    for role, split in splits_of(data).items():
        assert torch.equal(split.ids, splits_of(held)[role].ids)
        torch.testing.assert_close(split[:][0], splits_of(held)[role][:][0], rtol=0, atol=1e-7)
        assert torch.equal(split.labels, split.ids % 3)


@pytest.mark.parametrize(
    "label",
    [
        lambda row: np.int64(row % 3),
        lambda row: np.array([row % 3], np.uint8),
        lambda row: torch.tensor(row % 3),
        lambda row: CLASSES[row % 3],
        lambda row: np.str_(CLASSES[row % 3]),
    ],
    ids=["numpy", "vector of one", "tensor", "name", "name of numpy"],
)
def test_labels_are_numbers_or_names(label: Callable[[int], Any]) -> None:
    data = load_data(Pets(label=label))
    assert torch.equal(data.train.labels, data.train.ids % 3)
    named = isinstance(label(0), str)
    assert data.classes == (tuple(CLASSES) if named else ("0", "1", "2"))
    assert data.train.classes == (tuple(CLASSES) if named else None)


@pytest.mark.parametrize(
    ("pets", "message"),
    [
        (
            Pets(label=lambda row: np.eye(3)[row % 3]),
            r"example 0: .* not a vector of 3 numbers; give .* its argmax",
        ),
        (Pets(targets=torch.eye(3)[torch.arange(30) % 3]), r"a vector of 3 numbers"),
        (Pets(label=lambda row: 1.0), r"example 0: a label is the number of a class .*not 1.0"),
        (Pets(label=lambda row: row % 2 == 0), r"not True"),
        (Pets(label=lambda row: None), r"not None"),
        (
            Pets(label=lambda row: "cat" if row else 1),
            r"labels are names or numbers, not both; got 'cat' and 1",
        ),
        (Pets(label=lambda row: row % 3 - 1), r"labels must lie between 0 and 1 .*example 0 has -1"),
        (Pets(label=lambda row: row % 4, classes=CLASSES), r"between 0 and 2 for 3 classes; example 3 has 3"),
        (Pets(label=lambda row: 1000 * row), r"must count from 0 without gaps; 30 of them reach 29000"),
        (Pets(label=lambda row: 0), r"only one class \(0\)"),
        (
            Pets(label=lambda row: int(row == 7)),
            r"class '1' .* has 1 examples for train and select and report",
        ),
        (
            Pets(image=lambda row: PIXELS[row].float()),
            r"image 0 of Pets \(its values go from \d+ to 25\d, not from 0 to 1",
        ),
        (Pets(image=lambda row: PIXELS[row] / 127.5 - 1), r"its values go from -.*leave Normalize out"),
        (Pets(image=lambda row: PIXELS[row] / 0), r"its values go from"),
        (
            Pets(image=lambda row: PIXELS[row].int()),
            r"bytes \(uint8\) or floats in \[0, 1\], not torch.int32",
        ),
        (Pets(image=lambda row: PIXELS[row][:2]), r"shape \(1 or 3, height, width\), not \(2, 8, 8\)"),
        (Pets(image=lambda row: PIXELS[row].permute(1, 2, 0)), r"not \(8, 8, 3\)"),
        (Pets(image=lambda row: "cat.png"), r"a PIL image, an array or a tensor, not str"),
        (Pets(count=0), r"Pets has no examples"),
    ],
)
def test_what_is_no_image_or_no_label_is_refused(pets: Pets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(pets)


def test_examples_are_pairs_or_mappings() -> None:
    pairs = [(PIXELS[row], row % 3) for row in range(30)]
    rows = [{"img": image, "label": label, "id": 7} for image, label in pairs]
    assert load_data(pairs).name == "list"
    assert load_data(rows).fingerprint == load_data(pairs).fingerprint
    renamed = [{"x": image, "y": label} for image, label in pairs]
    with pytest.raises(
        ValueError, match=r"one column of the image, not 0 \(x: NoneType, y: NoneType\); say which"
    ):
        load_data(renamed)
    assert (
        load_data(renamed, columns={"image": "x", "label": "y"}).fingerprint == load_data(pairs).fingerprint
    )
    with pytest.raises(ValueError, match=r"\(image, label\), or a mapping with both; got a tuple of 3"):
        load_data([(*pair, 0) for pair in pairs])


def test_labels_are_taken_from_where_they_are_kept_and_images_are_not_held() -> None:
    targets = [row % 3 for row in range(1000)]
    pets = Pets(lambda row: PIXELS[row % 30], lambda row: row % 3, 1000, targets=targets)
    data = load_data(pets)
    assert pets.reads <= 70  # those that stand for all, twice, and one for the size
    data.train[[5, 7]]
    assert pets.reads <= 72
    without = load_data(Pets(lambda row: PIXELS[row % 30], lambda row: row % 3, 1000))
    assert without.fingerprint == data.fingerprint


def test_labels_that_differ_from_those_kept_are_refused() -> None:
    stale = Pets(targets=[(row + (row == 13)) % 3 for row in range(30)])
    with pytest.raises(
        ValueError, match=r"image 13 of Pets \(its label is 1 now, and was 2 when all labels were read\)"
    ):
        load_data(stale)
    changed = Pets(
        label=lambda row: 2 - row % 3, targets=[row % 3 for row in range(30)], target_transform=len
    )
    assert torch.equal(load_data(changed).train.labels, 2 - load_data(changed).train.ids % 3)


def test_random_transforms_are_refused() -> None:
    generator = np.random.default_rng(0)

    def flipped(row: int) -> torch.Tensor:
        return PIXELS[row].flip(2) if generator.random() < 0.3 else PIXELS[row]

    with pytest.raises(
        ValueError, match=r"Pets reads example \d+ otherwise the second time: leave random transforms out"
    ):
        load_data(Pets(flipped))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Stream(), r"Stream cannot be read by row, as splits, .*without streaming"),
        (iter([]), r"cannot be read by row"),
        (DataLoader(Pets()), r"give its data set, loader.dataset"),
        (42, r"int cannot be read by row"),
        (None, r"NoneType cannot be read by row"),
    ],
)
def test_what_has_no_rows_is_refused(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        load_data(given)


def test_sizes_may_differ_if_one_is_asked_for() -> None:
    pets = Pets(lambda row: PIXELS[row][:, : 8 - row % 2], classes=CLASSES)
    assert read_all(load_data(pets, img_size=6)).shape == (30, 3, 6, 6)
    with pytest.raises(
        ValueError, match=r"the image \d+ of Pets is [78]x8, another one [78]x8; pass img_size="
    ):
        read_all(load_data(pets))


def test_images_opened_by_the_user_can_be_read_again(tmp_path: Path) -> None:
    for row in range(30):
        pil(row).save(tmp_path / f"{row}.png")
    opened = [Image.open(tmp_path / f"{row}.png") for row in range(30)]
    data = load_data(Pets(opened.__getitem__))
    assert torch.equal(read_all(data), read_all(data))


def test_parts_of_data_sets_keep_labels_and_classes() -> None:
    pets = Pets(classes=CLASSES, targets=[row % 3 for row in range(30)])
    both = load_data(ConcatDataset([pets, pets]))
    assert both.classes == tuple(CLASSES)
    assert torch.equal(both.train.labels, both.train.ids % 3)
    half = load_data(Subset(pets, range(0, 30, 2)))
    assert (half.name, half.classes) == ("Pets", tuple(CLASSES))
    assert torch.equal(half.train.labels, half.train.ids * 2 % 3)
    tensors = load_data(TensorDataset(PIXELS, torch.arange(30) % 3))
    assert torch.equal(tensors.train.labels, tensors.train.ids % 3)


def test_three_data_sets_are_given_splits() -> None:
    pets = Pets(classes=CLASSES)
    parts = random_split(pets, [18, 3, 9], torch.Generator().manual_seed(3))
    covered = [sorted(row % 3 for row in part.indices) for part in parts]
    if any(len(set(labels)) < 3 for labels in covered):
        parts = [Subset(pets, range(18)), Subset(pets, range(18, 21)), Subset(pets, range(21, 30))]
    data = load_data(tuple(parts))
    assert data.name == "Pets"
    assert [len(split) for split in splits_of(data).values()] == [18, 3, 9]
    for split, part in zip(splits_of(data).values(), parts, strict=True):
        offset = {18: 0, 3: 18, 9: 21}[len(part)]
        rows = [part.indices[row - offset] for row in split.ids.tolist()]
        assert torch.equal((split[:][0] * 255).round().to(torch.uint8), PIXELS[rows])
    again = load_data({"train": parts[0], "validation": parts[1], "test": parts[2]})
    assert again.fingerprint == data.fingerprint
    assert len(load_data((parts[0], parts[2])).report) == 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((Pets(),), r"\(train, report\) or \(train, select, report\); got 1"),
        ({"train": Pets(), "holdout": Pets()}, r"the split 'holdout' is unknown; known are train"),
        ({"val": Pets(), "test": Pets()}, r"none called 'train'"),
        ({"train": Pets(), "val": Pets(), "valid": Pets()}, r"'val' and 'valid' are both the select split"),
        (
            (Pets(classes=CLASSES), Pets(classes=CLASSES[::-1])),
            r"the classes owl, dog, cat, not cat, dog, owl",
        ),
        ((Pets(), Pets()), r"Pets: the train and the report part hold the same examples"),
        ((Pets(), Pets(count=2)), r"class '2' .* has 0 examples for report"),
    ],
)
def test_wrong_splits_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(given)


def test_the_digest_says_what_the_data_is() -> None:
    def digest(**changes: Any) -> str:
        return load_data(Pets(**{"classes": CLASSES} | changes)).fingerprint

    assert digest() == digest(image=lambda row: PIXELS[row].clone())
    others = [
        digest(count=27),
        digest(classes=["a", "b", "c"]),
        digest(label=lambda row: (row + 1) % 3),
        digest(image=lambda row: PIXELS[row].flip(2)),
    ]
    assert len({digest(), *others}) == 5


class Rows:
    """Behaves like a ``datasets.Dataset`` as far as it is used."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> None:
        self.columns, self.column_names = columns, [*columns]
        self.features = features or dict.fromkeys(columns, SimpleNamespace())
        self.info = SimpleNamespace(dataset_name="pets")

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, key: int | str) -> Any:
        return (
            self.columns[key]
            if isinstance(key, str)
            else {name: each[key] for name, each in self.columns.items()}
        )


def test_data_sets_of_hugging_face_are_read_by_their_columns() -> None:
    columns = {"image": [pil(row) for row in range(30)], "label": [row % 3 for row in range(30)]}
    data = load_data(Rows(columns, {"image": object(), "label": SimpleNamespace(names=CLASSES)}))
    assert (data.name, data.classes) == ("pets", tuple(CLASSES))
    assert torch.equal(data.train.labels, data.train.ids % 3)
    texts = load_data(Rows(columns | {"label": [CLASSES[row % 3] for row in range(30)]}))
    assert texts.fingerprint == data.fingerprint
    other = Rows({"photo": columns["image"], "animal": columns["label"]})
    with pytest.raises(
        ValueError, match=r"must have one column of the image, not 0 .*say which with columns="
    ):
        load_data(other)
    assert len(load_data(other, columns={"image": "photo", "label": "animal"}).train) == 18
    test = Rows({"image": columns["image"][::-1], "label": columns["label"][::-1]})
    parts = load_data({"train": Rows(columns), "test": test, "unsupervised": Rows(columns)})
    assert len(parts.report) == 30


def test_the_package_datasets_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [pil(row) for row in range(30)], "label": [row % 3 for row in range(30)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    data = load_data(made)
    assert data.classes == tuple(CLASSES)
    assert torch.equal((data.report[:][0] * 255).round().to(torch.uint8), PIXELS[data.report.ids])
    assert load_data(made.with_format("torch")).fingerprint == data.fingerprint
    split = load_data(made.train_test_split(test_size=9, stratify_by_column="label", seed=0))
    assert len(split.report) == 9
    with pytest.raises(TypeError, match="without streaming"):
        load_data(made.to_iterable_dataset())


def test_a_folder_of_torchvision_is_read_as_by_its_name(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for row in range(30):
        folder = tmp_path / CLASSES[row % 3]
        folder.mkdir(exist_ok=True)
        pil(row).save(folder / f"{row:02}.png")
    theirs, ours = load_data(ImageFolder(tmp_path)), load_data(tmp_path)
    assert theirs.classes == ours.classes
    for role, split in splits_of(ours).items():
        assert torch.equal(split[:][0], splits_of(theirs)[role][:][0])
        assert torch.equal(split[:][1], splits_of(theirs)[role][:][1])


def test_all_examples_of_a_data_set_make_one_split() -> None:
    pets = Pets(classes=CLASSES)
    data = load_data(pets, img_size=12)
    split = as_split(pets, 12, CLASSES, None)
    assert split.ids.tolist() == list(range(30))
    assert torch.equal(split[data.train.ids][0], data.train[:][0])
    assert as_split(data.report, 12, None, data.learnt) is data.report
    with pytest.raises(ValueError, match=r"measure data\.report"):
        as_split(data, 12, None, None)
    with pytest.raises(ValueError, match=r"the model was trained on images of Pets; measure load_data"):
        as_split(pets, 12, CLASSES, data.learnt)
    with pytest.raises(ValueError, match=r"Pets is in several splits"):
        as_split((pets, Pets(image=lambda row: PIXELS[29 - row], classes=CLASSES)), 12, None, None)
    assert len(as_split("digits", None, None, None)) == 1797
    held = load_data((pets, Pets(image=lambda row: PIXELS[29 - row], classes=CLASSES)))
    with pytest.raises(ValueError, match="the model was trained on images of Pets"):
        as_split(pets, 8, CLASSES, held.learnt)


def test_train_and_evaluate_take_a_data_set(tmp_path: Path) -> None:
    learnt = Pets(
        lambda row: PIXELS[row % 30], lambda row: row % 10, 60, targets=[row % 10 for row in range(60)]
    )
    fresh = Pets(lambda row: PIXELS[29 - row], lambda row: row % 10, 20)
    runs = []
    for data in (learnt, load_data(learnt, img_size=tiny.backbone(pt.BitFit()).image_size)):
        model = tiny.backbone(pt.BitFit())
        attack = pt.PGD(pt.Linf(2 / 255), steps=1)
        runs.append(
            pt.train(
                model,
                data,
                Natural(),
                attacks=[attack],
                steps=1,
                batch_size=4,
                out=tmp_path / str(len(runs)),
            )
        )
        assert len(pt.evaluate(model, fresh).clean) == 20
        with pytest.raises(ValueError, match="the model was trained on images of Pets; measure load_data"):
            pt.evaluate(model, learnt)
    assert runs[0].config["data"] == runs[1].config["data"]
