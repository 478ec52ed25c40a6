"""Two processes learn what one does, up to the rounding of their sums."""

from pathlib import Path

import pytest
import torch

from tests.objectives_together import OBJECTIVES, learn
from tests.unit.training.test_loop import ROOT
from tests.unit.training.test_processes import launch


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    learn(one)
    launch(2, str(ROOT / "tests/objectives_together.py"), str(two))
    return one, two


@pytest.mark.some(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_learn_what_one_does(name: str, both: tuple[Path, Path]) -> None:
    """Adam's first steps have the length of the learning rate (0.005), whatever the gradient; 3e-8 was seen."""
    one, two = (torch.load(directory / f"{name}.pt") for directory in both)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-5), key
