"""Runs are selected by the fields of their configurations, and a condition that selects nothing is refused."""

from pathlib import Path

import pytest

from paretune.runs.fields import flat, select
from paretune.runs.store import Run, as_runs, load_runs
from tests.synthetic import STRATEGIES, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    options = {"points": 1, "examples": 20, "examples_select": 20}
    for number, strategy in enumerate(STRATEGIES):
        for seed in (0, 10):
            config = {
                "optimizer": {"lr": 0.1**number, "clip": None},
                "compiled": bool(number),
                "sizes": [1, 2],
            }
            write_run(root / f"{number}-{seed}", strategy, seed, **options, **config)
    return load_runs(root)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, "0-0 0-10 1-0 1-10 2-0 2-10 3-0 3-10"),
        ("strategy=LoRA", "0-0 0-10"),
        ("strategy = lora , BitFit", "0-0 0-10 2-0 2-10"),
        ("strategy!=LoRA,BitFit", "1-0 1-10 3-0 3-10"),
        ("strategy_config=LoRA(rank=8)", "0-0 0-10"),
        ("strategy_config=LoRA", "0-0 0-10"),
        ("strategy=Compacter()", "1-0 1-10"),
        ("seed=0", "0-0 1-0 2-0 3-0"),
        ("seed=0.0; strategy!=LoRA", "1-0 2-0 3-0"),
        ("seed!=0;strategy=LoRA;", "0-10"),
        ("optimizer.lr=0.1,1", "0-0 0-10 1-0 1-10"),
        ("optimizer.lr=1e0", "0-0 0-10"),
        ("compiled=false", "0-0 0-10"),
        ("optimizer.clip=null; seed=10", "0-10 1-10 2-10 3-10"),
        ("sizes=[1, 2]; seed=10", "0-10 1-10 2-10 3-10"),
    ],
)
def test_conditions_select(where: str | None, names: str, runs: list[Run]) -> None:
    assert [run.path.name for run in select(runs, where)] == names.split()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "stratgy=LoRA",
            "no run has a field 'stratgy'; did you mean strategy? Fields: compiled, optimizer.clip",
        ),
        ("xyz!=1", "no run has a field 'xyz'. Fields: compiled"),
        ("optimizer=1", "no run has a field 'optimizer'"),
        (
            "strategy=LoRA,BitFitt",
            "no run has strategy=BitFitt; they have BitFit, Compacter, FullFineTune, LoRA",
        ),
        ("strategy!=Lorra", "no run has strategy=Lorra"),
        ("seed=1", "no run has seed=1; they have 0, 10"),
        ("seed=zero", "no run has seed=zero"),
        ("compiled=1", "no run has compiled=1; they have false, true"),
        ("seed=0; seed=10", "none of the 8 runs meets it"),
        ("strategy", "'strategy' is no condition such as strategy=LoRA,BitFit or seed!=0"),
        ("strategy=", "'strategy=' is no condition"),
        ("=LoRA", "'=LoRA' is no condition"),
        ("seed<3", "'seed<3' is no condition"),
        ("seed>=3", "no run has a field 'seed>'"),
    ],
)
def test_conditions_are_refused(where: str, message: str, runs: list[Run]) -> None:
    with pytest.raises(ValueError, match="where=") as caught:
        select(runs, where)
    assert message in str(caught.value)


def test_commas_in_brackets_belong_to_a_value(tmp_path: Path) -> None:
    strategy = type(STRATEGIES[0])("LoRA", "LoRA(rank=8, targets=('q', 'v'))", 0.0, 1)
    write_run(tmp_path / "a", strategy, points=1, examples=20, examples_select=20)
    runs = load_runs(tmp_path)
    assert select(runs, "strategy_config=LoRA(rank=8, targets=('q', 'v'))") == runs


def test_a_configuration_is_flat_by_dotted_names() -> None:
    config = {"a": {"b": {"c": 1}, "d": None}, "e": [{"f": 2}, {"f": 3}], "g": [4, 5], "h": {}}
    assert flat(config) == {"a.b.c": 1, "a.d": None, "e.0.f": 2, "e.1.f": 3, "g": [4, 5]}


def test_a_run_that_is_named_twice_is_refused(runs: list[Run]) -> None:
    """Its points would count twice."""
    root = runs[0].path.parent
    with pytest.raises(ValueError, match="is named twice; name it once"):
        as_runs([root, runs[0].path])
