"""Which images a run learns: one data set as before, or several that are tasks with names."""

from pathlib import Path
from typing import Any

import pytest
import torch

import paretune as pt
from paretune.sweeps.config import CompareConfig, RunConfig
from paretune.sweeps.grid import directory_name
from paretune.sweeps.sources import DataSets, PerTask, SourceConfig, objects_by_task
from tests.together import noise


def sources(data: Any, **options: Any) -> dict[str, str]:
    """The data set of each task."""
    return {name: str(source.data) for name, source in SourceConfig(data=data, **options).sources.items()}


def test_names_are_those_of_the_data_or_given_before_it() -> None:
    assert sources("digits") == {}
    assert sources(["digits", "fashion-mnist"]) == {"digits": "digits", "fashion-mnist": "fashion-mnist"}
    paths = ["photos/my flowers", "tables/pets.v2.csv", "hf:somebody/birds", "blooms=a,b=c"]
    assert sources(paths) == {
        "my flowers": "photos/my flowers",
        "pets-v2": "tables/pets.v2.csv",
        "birds": "hf:somebody/birds",
        "blooms": "a,b=c",
    }
    assert sources({"digits": None, "blooms": "a=b"}) == {"digits": "digits", "blooms": "a=b"}


@pytest.mark.parametrize("text", ["a,b", "one=two", "my, photos=1"])
def test_one_text_is_one_data_set_whatever_is_in_it(text: str) -> None:
    config = RunConfig(data=text)
    assert config.data == text
    assert config.sources == {}
    assert config.places("out") == [Path("out")]


def test_each_data_set_has_the_options_of_the_run_or_its_own() -> None:
    table = {"data": "pets.csv", "columns": {"image": "file", "label": "kind"}, "limit": "all"}
    config = RunConfig(
        data={"digits": None, "pets": table, "kept": {"data": "more"}}, limit=500, skip_bad=True
    )  # type: ignore[arg-type]
    assert [source.most for source in config.sources.values()] == [500, None, 500]
    assert all(source.skip_bad for source in config.sources.values())
    assert config.sources["pets"].columns == "image=file,label=kind"
    assert config.sources["kept"].columns is None
    assert config.places("out") == [Path("out/digits"), Path("out/pets"), Path("out/kept")]
    assert not config.is_demo
    assert config.size == 224
    demo = RunConfig(data=["digits", "more"])  # type: ignore[arg-type]
    assert [source.most for source in demo.sources.values()] == [1000, None]


def test_whatever_makes_the_run_another_makes_its_directory_another() -> None:
    changes: list[dict[str, Any]] = [
        {"data": "digits"},
        {"data": ["digits", "a"]},
        {"data": ["a", "digits"]},
        {"data": ["digits", "other=a"]},
        {"data": ["digits", "b"]},
        {"data": {"digits": None, "a": {"limit": 50}}},
        {"data": ["digits", "a"], "limit": 50},
        {"data": ["digits", "a"], "task_weights": "size"},
        {"data": ["digits", "a"], "task_weights": {"digits": 1, "a": 2}},
        {"data": ["digits", "a"], "task_batch_sizes": "digits=8,a=16"},
    ]
    names = [directory_name(RunConfig(**change)) for change in changes]
    assert len({*names}) == len(names)
    again = {"data": {"digits": {"limit": 1000}, "a": "a"}, "img_size": 224}
    assert directory_name(RunConfig(**again)) == names[1]  # the same run in other words
    written = {"data": ["digits", "a"], "task_weights": {"a": 2.0, "digits": 1.0}}
    assert RunConfig(**written).together({"digits": noise(), "a": noise(seed=1)}).shares == (1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ["digits", "digits"]}, "two tasks are called 'digits'; give one another name"),
        ({"data": ["a/train", "b/train"]}, "two tasks are called 'train'.*--data other=b/train"),
        ({"data": ["pets", "PETS"]}, "differ by more than case: pets, PETS"),
        ({"data": {"a/b": "x", "c": "y"}}, "name of a task is that of a directory.*'a/b'"),
        ({"data": ["digits", "adapter=x"]}, "not 'adapter'"),
        ({"data": ["digits", ""]}, "each data set is a name or a path, got ''"),
        ({"data": ["digits", 3]}, "each data set is a name or a path, got 3"),
        ({"data": ["digits"]}, "a list or a mapping of two or more"),
        ({"data": {"train": "a", "test": "b"}}, "train, test are names of splits; name tasks otherwise"),
        (
            {"data": {"a": {"limits": 3}, "b": None}},
            "data: a has no option 'limits'; there are: data, data_root",
        ),
        ({"data": {"a": {"limit": 0}, "b": None}}, "data: a: limit must be a whole number from 1"),
        (
            {"data": {"a": {"skip_bad": "yes"}, "b": None}},
            "data: a: skip_bad must be true or false, got 'yes'",
        ),
        ({"data": {"a": {"data": ["c", "d"]}, "b": None}}, "data: a is one name or path"),
        ({"data": {"a": 3, "b": None}}, "data: a must be a name, a path or options by name, got 3"),
        ({"task_weights": "size"}, "task_weights is for several tasks, and data='digits' is one"),
        ({"task_batch_sizes": "digits=3"}, "task_batch_sizes is for several tasks"),
        ({"data": ["a", "b"], "task_weights": "a=1"}, "task_weights must name each task once: a, b; got a=1"),
        ({"data": ["a", "b"], "task_weights": "a=1,c=1"}, "name each task once: a, b; got a=1,c=1"),
        ({"data": ["a", "b"], "task_weights": "a=1,a=2"}, "each task has one number"),
        ({"data": ["a", "b"], "task_weights": "1,2"}, "each task has a number as in digits=1,flowers=0.5"),
        ({"data": ["a", "b"], "task_weights": "a=1,b=much"}, "b must be a number"),
        (
            {"data": ["a", "b"], "task_weights": "a=1,b=0"},
            "task_weights: b must be finite and above 0, got 0",
        ),
        ({"data": ["a", "b"], "task_batch_sizes": "a=8,b=1.5"}, "task_batch_sizes: b must be a whole number"),
        ({"data": ["a", "b"], "task_batch_sizes": "size"}, "each task has a number"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


def test_numbers_for_tasks_are_read_and_written() -> None:
    numbers = PerTask.read("digits=1, fashion-mnist = 1/2")
    assert numbers == (("digits", 1), ("fashion-mnist", 0.5))
    assert PerTask.read(numbers.plain()) == PerTask.read(dict(numbers)) == numbers
    both = DataSets.read(["digits", "more=a,b"])
    assert DataSets.read(both.plain()) == DataSets.read(both) == both
    assert both.plain() == {"digits": {"data": "digits"}, "more": {"data": "a,b"}}


def test_objects_are_tasks_where_they_are_several() -> None:
    one, other = noise(), noise(name="other", seed=1)
    assert objects_by_task([one, other], None) == {"noise": one, "other": other}
    assert objects_by_task(["digits", Path("a/pets")], None) == {"digits": "digits", "pets": Path("a/pets")}
    examples = [(torch.zeros(3, 8, 8), 0)]
    assert objects_by_task({"a": one, "b": examples}, None) == {"a": one, "b": examples}
    for alone in (
        "digits",
        one,
        examples,
        (one.train, one.report),
        {"train": one.train, "test": one.report},
    ):
        assert objects_by_task(alone, None) is None
    assert objects_by_task({"photo": examples, "art": examples}, ["photo"]) is None  # domains of one data set
    with pytest.raises(ValueError, match="two tasks have one name: noise, noise"):
        objects_by_task([one, noise(seed=1)], None)


def test_data_that_is_not_there_is_named_with_its_task(tmp_path: Path) -> None:
    config = RunConfig(data={"digits": None, "pets": str(tmp_path / "pets")}, img_size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data='.*pets': name_or_path='.*pets' is not a folder"):
        config.load_data()
    both = RunConfig(data={"one": "digits", "two": {"data": "digits", "split_seed": 1}}, img_size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"learns \d+ of the images that 'two' is measured on"):
        both.load_data()
    large = RunConfig(data=["digits", "again=digits"], task_batch_sizes="digits=8,again=700", img_size=8)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"batch_size=700 is more than the \d+ images of the train split of the task 'again'"
    ):
        large.check()


@pytest.mark.slow
def test_a_strategy_that_chooses_by_images_needs_one_task(tmp_path: Path) -> None:
    tasks = {"a": noise(), "b": noise(seed=1)}
    with pytest.raises(ValueError, match="one task"):
        pt.sweep(
            tasks,
            "Sparse",
            [0],
            epochs=1,
            batch_size=8,
            points=1,
            workers=1,
            out=tmp_path / "out",
            progress=False,
        )
    assert not [*tmp_path.rglob("config.json")]
