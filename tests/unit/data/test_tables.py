"""Tables of paths and labels: what is read, and what is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from paretune.data.images import load_data
from paretune.data.splits import ROLES, split_rows
from tests.unit.data.test_images import read_all, splits_of


def write(root: Path, count: int = 24) -> pd.DataFrame:
    """Images whose red channel is their row, in a folder with an odd name, and the table of them."""
    folder = root / "große Bilder"
    folder.mkdir()
    rows = []
    for row in range(count):
        Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{row} ä.png")
        rows.append({"path": f"große Bilder/{row} ä.png", "label": ("cat", "dog", "owl")[row % 3]})
    return pd.DataFrame(rows)


def reds(split: Any) -> list[int]:
    return [round(255 * value) for value in split[:][0][:, 0, 0, 0].tolist()]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", lambda table: table.to_csv(index=False).encode()),
        (".CSV", lambda table: table.to_csv(index=False).encode("utf-8-sig")),
        (".csv", lambda table: table.to_csv(index=False, sep=";").encode("utf-8-sig")),
        (".csv", lambda table: table.to_csv(index=False, lineterminator="\r\n").replace(",", ", ").encode()),
        (".tsv", lambda table: table.to_csv(index=False, sep="\t").encode()),
    ],
    ids=["plain", "with a mark of order", "semicolons", "of another system", "tabs"],
)
def test_paths_are_relative_to_the_file(tmp_path: Path, suffix: str, text: Any) -> None:
    file = tmp_path / f"my birds{suffix}"
    file.write_bytes(text(write(tmp_path)))
    data = load_data(file)
    assert (data.name, data.classes, data.image_size) == ("my birds", ("cat", "dog", "owl"), 8)
    for split in splits_of(data).values():
        assert reds(split) == split.ids.tolist()
        assert torch.equal(split.labels, split.ids % 3)
    assert data.loaded_with is not None
    assert load_data(**data.loaded_with).fingerprint == data.fingerprint


def test_parquet_and_frames_are_the_same_data(tmp_path: Path) -> None:
    table = write(tmp_path)
    table.to_parquet(tmp_path / "birds.parquet")
    table.to_csv(tmp_path / "birds.csv", index=False)
    frame = load_data(table, root=tmp_path)
    assert (frame.name, frame.loaded_with) == ("table", None)
    for suffix in ("parquet", "csv"):
        assert load_data(tmp_path / f"birds.{suffix}").fingerprint == frame.fingerprint


def test_absolute_paths_and_numbers_as_labels(tmp_path: Path) -> None:
    table = write(tmp_path, 36)
    table["path"] = [str(tmp_path / path) for path in table["path"]]
    table["label"] = np.arange(36) % 12
    data = load_data(table)
    assert data.classes == tuple(map(str, range(12)))  # 10 after 9, not after 1
    assert torch.equal(data.train.labels, data.train.ids % 12)


def test_a_column_of_splits_is_kept(tmp_path: Path) -> None:
    table = write(tmp_path).assign(split=["train", "Val", "test", "train"] * 6)
    data = load_data(table, root=tmp_path)
    assert {role: sorted(reds(split)) for role, split in splits_of(data).items()} == {
        "train": [row for row in range(24) if row % 4 in (0, 3)],
        "select": [row for row in range(24) if row % 4 == 1],
        "report": [row for row in range(24) if row % 4 == 2],
    }
    table["split"] = ["train", "train", "test", "train"] * 6
    data = load_data(table, root=tmp_path)
    assert sorted(reds(data.report)) == [row for row in range(24) if row % 4 == 2]
    assert (len(data.train), len(data.select)) == (15, 3)


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    table = write(tmp_path, 60)
    table["group"] = [f"patient {row // 3 % 7}" for row in range(60)]
    for seed in range(5):
        data = load_data(table, root=tmp_path, seed=seed)
        found = {}
        for role, split in splits_of(data).items():
            assert split.groups is not None
            found[role] = set(split.groups.tolist())
            assert [row // 3 % 7 for row in reds(split)] == split.groups.tolist()
            assert set(split.labels.tolist()) == {0, 1, 2}
        assert sum(map(len, found.values())) == 7
        assert len(data.train) > len(data.report) >= len(data.select)


def test_groups_that_straddle_given_splits_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path).assign(split=["train", "train", "train", "test"] * 6)
    table["group"] = [f"patient {row // 2}" for row in range(24)]
    with pytest.raises(
        ValueError, match=r"6 of 12 groups are in several splits.* patient 1, .*Move each to one split"
    ):
        load_data(table, root=tmp_path)


@pytest.mark.parametrize("seed", range(10))
def test_groups_of_one_class_each_leave_every_class_in_every_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, 12, 200))
    labels = groups % 3
    rows = split_rows(
        labels,
        ((range(200), ROLES),),
        num_classes=3,
        seed=seed,
        limit=None,
        shares=(0.6, 0.15, 0.25),
        groups=groups,
    )
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(200))
    sets = [set(groups[part].tolist()) for part in rows.values()]
    assert sum(map(len, sets)) == len(set(groups.tolist()))
    assert all(set(labels[part].tolist()) == {0, 1, 2} for part in rows.values())


def test_groups_too_few_for_the_splits_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path).assign(group=["a", "b"] * 12)
    with pytest.raises(ValueError, match="has 2 groups, too few or too large for 3 splits"):
        load_data(table, root=tmp_path)


def test_files_that_do_not_exist_are_all_named(tmp_path: Path) -> None:
    table = write(tmp_path)
    for row in (3, 7, 20):
        (tmp_path / table["path"][row]).unlink()
    with pytest.raises(ValueError, match=r"cannot read 3 of the 24 images of table") as told:
        load_data(table, root=tmp_path)
    for row in (3, 7, 20):
        assert f"{row} ä.png (it does not exist)" in str(told.value)
    assert len(read_all(load_data(table, root=tmp_path, skip_bad=True))) == 21


def test_other_columns_are_named(tmp_path: Path) -> None:
    table = write(tmp_path)
    renamed = table.rename(columns={"path": "photo", "label": "species"})
    with pytest.raises(
        ValueError, match=r"no column of the image .* and no column of the label .*are photo, species"
    ):
        load_data(renamed, root=tmp_path)
    named = load_data(renamed, root=tmp_path, columns={"image": "photo", "label": "species"})
    assert named.fingerprint == load_data(table, root=tmp_path).fingerprint
    with pytest.raises(ValueError, match=r"no column 'foto' \(image\); did you mean 'photo'"):
        load_data(renamed, root=tmp_path, columns={"image": "foto", "label": "species"})
    with pytest.raises(ValueError, match=r"several columns that may be the label: label, class"):
        load_data(table.assign(**{"class": "x"}), root=tmp_path)
    with pytest.raises(ValueError, match="columns names the 'picture'; known are image, label, split, group"):
        load_data(table, columns={"picture": "path"})


def change(table: pd.DataFrame, column: str, row: int, value: Any) -> pd.DataFrame:
    changed = table.astype(object)
    changed.loc[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: change(t, "label", 5, None), r"'label' is empty in 1 rows, first in row 5"),
        (lambda t: change(t, "path", 2, " "), r"'path' is empty in 1 rows, first in row 2"),
        (lambda t: change(t, "path", 2, t["path"][4]), r"names 1 files more than once: .*4 ä.png"),
        (lambda t: change(t, "path", 2, f"./x/../{t['path'][4]}"), r"names 1 files more than once"),
        (lambda t: t.assign(split=["train", "holdout"] * 12), r"has the splits 'holdout'; known are train"),
        (lambda t: t.assign(split="test"), r"has no train part; it has report"),
        (lambda t: t.iloc[:0], r"table has no rows"),
        (lambda t: t.iloc[:5], r"class 'owl' .* has 1 examples for train and select and report"),
        (lambda t: t[t["label"] == "cat"], r"only one class \(cat\)"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(spoil(write(tmp_path)), root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is no table"),
        ("t.csv", b"path,label\n\xff\xfe\x00,x\n", "is no text in UTF-8"),
        ("t.csv", b'path,label\n"a.png,cat\n', "is no table"),
        ("t.parquet", b"PAR1", "is not a Parquet file"),
        ("t.xlsx", b"PK", r"must be a folder, or a table that ends with \.csv"),
    ],
)
def test_files_that_are_no_tables_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / name)


def test_an_absent_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"name_or_path='my\.csv' is not a file"):
        load_data("my.csv")


def test_classes_may_be_given_in_another_order(tmp_path: Path) -> None:
    table = write(tmp_path)
    data = load_data(table, root=tmp_path, classes=["owl", "cat", "dog"])
    assert torch.equal(data.train.labels, (data.train.ids + 1) % 3)
    with pytest.raises(
        ValueError, match=r"row 2 has the label 'owl', the first of 8 that are none of the classes cat, dog"
    ):
        load_data(table, root=tmp_path, classes=["cat", "dog"])


def test_one_image_of_a_class_is_enough_for_no_split(tmp_path: Path) -> None:
    table = write(tmp_path, 6).iloc[:3].assign(split=["train", "val", "test"])
    with pytest.raises(ValueError, match=r"class 'dog' \(label 1\) of 'table' has 0 examples for train"):
        load_data(table, root=tmp_path)


def test_three_tables_are_given_splits(tmp_path: Path) -> None:
    table = write(tmp_path, 36)
    paths = []
    for number, part in enumerate(np.split(np.arange(36), [18, 27])):
        paths.append(tmp_path / f"{number}.csv")
        table.iloc[part].to_csv(paths[-1], index=False)
    data = load_data(tuple(paths))
    assert [min(reds(split)) for split in splits_of(data).values()] == [0, 18, 27]
    assert [len(split) for split in splits_of(data).values()] == [18, 9, 9]
    named = {"test": paths[2], "train": str(paths[0]), "val": paths[1]}
    assert load_data(named).fingerprint == data.fingerprint
    table.iloc[15:27].to_csv(paths[1], index=False)
    with pytest.raises(ValueError, match=r"3 files are in the train and in the select part: .*15 ä\.png"):
        load_data(tuple(paths))


def test_three_equal_groups_of_each_class_are_enough() -> None:
    """By size alone, the second group of a class would go to the train split too."""
    groups = np.repeat(np.arange(9), 10)
    rows = split_rows(
        groups % 3,
        ((range(90), ROLES),),
        num_classes=3,
        seed=0,
        limit=None,
        shares=(0.6, 0.15, 0.25),
        groups=groups,
    )
    assert [len(part) for part in rows.values()] == [30, 30, 30]
