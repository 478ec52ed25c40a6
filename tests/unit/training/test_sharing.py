"""Processes send each other the gradients of what trains, once a step, and any number of them goes on with a run."""

import json
from pathlib import Path

import pytest
import torch

from paretune.runs.rows import CHECKPOINT, read_findings
from paretune.runs.store import load_points
from tests.sharing import COURSES, learn
from tests.unit.training.test_loop import ROOT
from tests.unit.training.test_processes import launch

SCRIPT = str(ROOT / "tests/sharing.py")


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sent")
    launch(2, SCRIPT, str(directory), "sent")
    return directory


@pytest.mark.slow
def test_only_the_gradients_of_what_trains_are_sent_once_a_step(sent: Path) -> None:
    """And once more for the perturbation of the weights, whatever the parts and the passes of the loss."""
    for name, times in (("plain", 3), ("parts", 3), ("perturbed", 6)):
        noted = json.loads((sent / "sent.json").read_text())[name]
        step = noted["numbers"] + noted["tensors"]  # and a number for each tensor: whether it has a gradient
        assert noted["sizes"][:times] == [step] * times
        assert step not in noted["sizes"][times:]  # which are of the evaluation


@pytest.mark.slow
def test_what_one_process_skips_it_learns_from_the_others_and_what_nobody_uses_stays(sent: Path) -> None:
    first, second = (torch.load(sent / f"idle-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["module.0.token"].tolist() == [1, 1, 1]  # decay would have changed it
    assert first["module.0.sometimes"].all()


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one process alone, of two and then one, of one and then two."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("alone", "fewer", "more")}
    learn(places["alone"], half=False)
    launch(2, SCRIPT, str(places["fewer"]), "half")
    launch(1, SCRIPT, str(places["more"]), "half")
    for name in ("fewer", "more"):
        assert all((places[name] / course / CHECKPOINT).exists() for course in COURSES)
    launch(1, SCRIPT, str(places["fewer"]), "rest")
    launch(2, SCRIPT, str(places["more"]), "rest")
    return places


@pytest.mark.some
@pytest.mark.slow
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("change", ["fewer", "more"])
def test_another_number_of_processes_goes_on_as_one_would(
    change: str, course: str, courses: dict[str, Path]
) -> None:
    """By the rule of ``objectives/test_together.py``."""
    one, other = (torch.load(courses[name] / f"{course}.pt") for name in ("alone", change))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.allclose(value, other[key], atol=1e-5), key
    alone, changed = (load_points(courses[name] / course) for name in ("alone", change))
    same = ["step", "gradient_evaluations", "examples", "report_id"]
    assert changed[same].equals(alone[same])
    counts = {"fewer": [2, 1], "more": [1, 2]}[change]
    assert changed["processes"].tolist() == counts
    findings = [noted["finding"] for noted in read_findings(courses[change] / course)]
    assert f"goes on with {counts[1]} processes, after {counts[0]}" in " ".join(findings)
