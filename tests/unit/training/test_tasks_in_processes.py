"""Two processes learn two tasks as one process does, and go on where they were killed."""

from pathlib import Path

import pytest
import torch

from paretune.runs.store import load_points
from tests.tasks_together import COURSES, learn
from tests.unit.training.test_loop import ROOT
from tests.unit.training.test_processes import launch
from tests.unit.training.test_tasks import same

SCRIPT = str(ROOT / "tests/tasks_together.py")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    learn(one)
    launch(2, SCRIPT, str(two))
    return one, two


@pytest.mark.some(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", COURSES)
def test_two_processes_learn_what_one_does(name: str, places: tuple[Path, Path]) -> None:
    """By the rule of one task, see ``objectives/test_together.py``."""
    one, first, second = (
        torch.load(places[number] / f"{name}-{rank}.pt") for number, rank in ((0, 0), (1, 0), (1, 1))
    )
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.allclose(value, first[key], atol=1e-5), key
        assert torch.equal(first[key], second[key]), key
    counted = ["task", "step", "gradient_evaluations", "examples", "report_id"]
    rows = [load_points(place / name)[counted] for place in places]
    assert rows[0].equals(rows[1])


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["natural", "adversarial"])
def test_processes_that_were_killed_end_as_if_they_had_not_been(
    name: str, places: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        launch(2, SCRIPT, str(tmp_path), name)
    assert load_points(tmp_path / name).step.max() == 4
    assert not [*(tmp_path / name).rglob("DONE")]
    launch(2, SCRIPT, str(tmp_path))
    same(places[1] / name, tmp_path / name)
