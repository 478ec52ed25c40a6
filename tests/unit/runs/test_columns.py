"""Points and the configuration of their run make one flat table that loses nothing."""

import json
from pathlib import Path

import pandas as pd
import pytest

from paretune.runs.columns import point_table
from paretune.runs.store import load_points, load_runs
from tests.synthetic import STRATEGIES, There, write_run

SMALL = {"points": 2, "examples": 40, "examples_select": 30}


def test_a_row_has_its_point_and_the_fields_of_its_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", STRATEGIES[0], optimizer={"lr": 0.1, "betas": [0.9, 0.99]}, **SMALL)
    write_run(tmp_path / "b", STRATEGIES[2], 4, finish=False, optimizer={"lr": 0.2}, **SMALL)
    table, points = point_table(load_runs(tmp_path)), load_points(tmp_path)
    assert table[["path", "step", "clean", "robust", "seed"]].equals(
        points[["path", "step", "clean", "robust", "seed"]]
    )
    assert table["config.optimizer.lr"].tolist() == [0.1, 0.1, 0.2, 0.2]
    assert table["config.optimizer.betas"].tolist()[:2] == ["[0.9, 0.99]"] * 2
    assert table["config.optimizer.betas"].isna().tolist() == [False, False, True, True]
    assert table["finished"].tolist() == [True, True, False, False]
    assert table["config.seed"].tolist() == [0, 0, 4, 4]
    assert json.loads(table["versions"].iloc[0]) == points["versions"].iloc[0]


def test_every_column_is_of_one_kind_so_that_parquet_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for number, depth in enumerate(("all", 3, None, True)):
        write_run(tmp_path / str(number), STRATEGIES[0], number, depth=depth, **SMALL)
    write_run(tmp_path / "there", STRATEGIES[0], 9, elsewhere={"rain": There(0.9)}, **SMALL)
    table = point_table(load_runs(tmp_path))
    assert [None if pd.isna(value) else value for value in table["config.depth"]][::2] == [
        "all",
        "3",
        None,
        "true",
        None,
    ]
    table.to_parquet(tmp_path / "points.parquet")
    again = pd.read_parquet(tmp_path / "points.parquet")
    assert [*again] == [*table]
    assert again["robust"].tolist() == table["robust"].tolist()
    assert json.loads(again["elsewhere"].iloc[-1])["rain"]["examples"] == 40
    assert again["clean_in_rain"].isna().sum() == 8


def test_runs_without_points_are_no_table(tmp_path: Path) -> None:
    write_run(tmp_path / "new", STRATEGIES[0], finish=False, **SMALL | {"points": 0})
    with pytest.raises(ValueError, match="none of the 1 runs has a point yet"):
        point_table(load_runs(tmp_path))
