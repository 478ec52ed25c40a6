"""Domains as tasks of their own: three splits of each, and nothing of a group in two of them, whichever the domain."""

import itertools
import pickle
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from paretune.data.image_split import ImageSplit, joined
from paretune.data.images import ImageData, load_data
from paretune.data.related import load_related
from tests.unit.data.test_domains import CLASSES, DOMAINS, seen, tensors, write
from tests.unit.data.test_images import splits_of


@pytest.mark.parametrize("kind", ["folder", "table", "mapping"])
def test_each_domain_is_a_data_set_of_its_own(tmp_path: Path, kind: str) -> None:
    table = write(tmp_path / "pets")
    table.to_csv(tmp_path / "pets.csv", index=False)
    mapping = {name: tensors(number) for number, name in enumerate(DOMAINS)}
    given = {"folder": tmp_path / "pets", "table": tmp_path / "pets.csv", "mapping": mapping}[kind]
    related = load_related(given, seed=3)
    assert {*related} == {*DOMAINS}
    for domain, data in related.items():
        assert data.name.endswith(f": {domain}")
        inside = [example for split in splits_of(data).values() for example in seen(split)]
        assert sorted(inside) == [(domain, number) for number in range(24)]
        assert not data.elsewhere
        for split in splits_of(data).values():
            counts = torch.bincount(split.labels, minlength=3)
            assert int(counts.max() - counts.min()) <= 1
    assert len({split.fingerprint for data in related.values() for split in splits_of(data).values()}) == 9


def test_domains_are_chosen_and_limited_each(tmp_path: Path) -> None:
    write(tmp_path / "pets", count=48)
    related = load_related(tmp_path / "pets", domains=["sketch", "art"], limit=24)
    assert [*related] == ["sketch", "art"]
    assert [sum(map(len, splits_of(data).values())) for data in related.values()] == [24, 24]


def drawn_twice(root: Path, count: int = 36) -> Path:
    """The same pictures in all domains, with a column of groups that says which are the same."""
    table = write(root / "pets", count=count)
    table["group"] = [Path(path).stem for path in table["path"]]
    table.to_csv(root / "pets.csv", index=False)
    return root / "pets.csv"


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_that_is_drawn_in_each_domain_is_in_one_split(tmp_path: Path, seed: int) -> None:
    related = load_related(drawn_twice(tmp_path), seed=seed)
    roles: dict[int, set[str]] = {}
    for data in related.values():
        for role, split in splits_of(data).items():
            for _, number in seen(split):
                roles.setdefault(number, set()).add(role)
    assert len(roles) == 36
    assert all(len(where) == 1 for where in roles.values())
    # The group of an example says so too, in each domain the same.
    groups = {
        number: {
            int(group)
            for data in related.values()
            for split in splits_of(data).values()
            if split.groups is not None
            for (_, n), group in zip(seen(split), split.groups, strict=True)
            if n == number
        }
        for number in range(36)
    }
    assert all(len(each) == 1 for each in groups.values())


def test_without_groups_the_same_pictures_would_be_in_several_splits(tmp_path: Path) -> None:
    """So that the test above can fail."""
    table = pd.read_csv(drawn_twice(tmp_path)).drop(columns="group")
    table.to_csv(tmp_path / "apart.csv", index=False)
    related = load_related(tmp_path / "apart.csv")
    trained = {number for _, number in seen(related["art"].train)}
    assert trained & {number for _, number in seen(related["photo"].report)}


def test_a_domain_may_lack_a_class_of_the_others(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    for number in range(0, 24, 3):
        (tmp_path / "pets" / "art" / "cat" / f"{number}.png").unlink()
    (tmp_path / "pets" / "art" / "cat").rmdir()
    related = load_related(tmp_path / "pets")
    assert all(data.classes == CLASSES for data in related.values())
    assert {*related["art"].train.labels.tolist()} == {1, 2}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"domains": ["art", "phto"]}, "did you mean 'photo'"),
        ({"domains": ["art"]}, "two domains or more"),
        ({"domains": ["art", "art"]}, "each once"),
        ({"limit": 2}, "limit=6 cannot keep"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_asked_wrongly_is_refused(tmp_path: Path, options: dict[str, object], told: str) -> None:
    write(tmp_path / "pets")
    with pytest.raises(ValueError, match=told):
        load_related(tmp_path / "pets", **options)


def test_a_class_with_too_few_images_is_named_with_its_domain(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    for number in range(3, 24, 3):
        (tmp_path / "pets" / "art" / "cat" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match=r"the domain 'art' .* has 1 images of the class 'cat'"):
        load_related(tmp_path / "pets")


def test_a_data_set_that_is_in_no_domains_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match="two domains or more"):
        load_related(tmp_path / "art" / "cat")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="'digits' is in no domains"):
        load_related("digits")


def data() -> ImageData:
    images = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return ImageData.from_tensors(images, torch.arange(30) % 3, CLASSES)


def test_splits_are_joined_in_their_order() -> None:
    parts = [*splits_of(data()).values()]
    whole = pickle.loads(pickle.dumps(joined(parts)))
    rows = torch.tensor([29, 0, 18, 17, 20, 0])
    every = torch.cat([part[:][0] for part in parts])
    assert torch.equal(whole[rows][0], every[rows])
    assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
    assert sorted(whole.ids.tolist()) == [*range(30)]
    assert whole[[]][0].shape == (0, 3, 4, 4)
    assert len({part.fingerprint for part in (*parts, whole, joined(parts[:2]))}) == 5


def test_labels_number_the_classes_of_a_model() -> None:
    split = data().report
    among = (1, 3, 4)
    known = ("cow", "owl", "pig", "cat", "dog")
    renamed = split.labelled(known, among=among)
    assert [known[label] for label in renamed.labels] == [CLASSES[label] for label in split.labels]
    assert torch.equal(renamed[:][0], split[:][0])
    assert (renamed.among, renamed.classes) == (among, known)
    assert renamed.fingerprint != split.fingerprint
    with pytest.raises(ValueError, match="'owl', which is none of the 2 classes"):
        split.labelled(("cat", "dog"))
    with pytest.raises(ValueError, match="have no names"):
        ImageSplit(split.labels, split.ids, lambda rows: rows, "x").labelled(known)


def test_all_of_a_domain_is_read_as_its_images_are(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    related = load_related(tmp_path / "pets")["photo"]
    whole = joined([*splits_of(related).values()])
    parts = itertools.chain(*(seen(split) for split in splits_of(related).values()))
    assert seen(whole) == [*parts]
    alone = load_data(tmp_path / "pets" / "photo")
    assert sorted(seen(whole)) == sorted(
        itertools.chain(*(seen(split) for split in splits_of(alone).values()))
    )
