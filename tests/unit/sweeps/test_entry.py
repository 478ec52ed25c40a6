"""One call trains and judges: by names as the command line does, and with objects of one's own."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import paretune as pt
from paretune.runs.store import load_runs
from tests import tiny
from tests.unit.commands.test_cli import weights  # noqa: F401

FEW = {
    "epochs": 1,
    "points": 1,
    "train_steps": 1,
    "eval_steps": 2,
    "batch_size": 16,
    "workers": 1,
    "progress": False,
}


class Pixels(Dataset[tuple[torch.Tensor, int]]):
    """Of four classes, which brightness tells apart."""

    classes = ("a", "b", "c", "d")

    def __len__(self) -> int:
        return 120

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(place)
        return torch.rand(3, 8, 8, generator=generator) * (1 + place % 4) / 4, place % 4


def own(classes: int) -> pt.Backbone:
    backbone = pt.Backbone(tiny.network().eval(), image_size=8, sites=["1.norm"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.module[-1] = torch.nn.Linear(32, classes)
    return backbone


def test_a_model_and_a_data_set_of_ones_own_are_swept(tmp_path: Path) -> None:
    backbone = own(4)
    before = backbone.fingerprint
    outcome = pt.sweep(
        Pixels(), ["LoRA(rank=2)", pt.BitFit()], [0], backbone=backbone, out=tmp_path, epsilon=2 / 255, **FEW
    )
    (condition,) = outcome.conditions
    assert {each.strategy for each in condition.areas} == {"LoRA(rank=2)", "BitFit"}
    assert condition.epsilon == 2 / 255
    assert backbone.fingerprint == before
    assert pt.compare(tmp_path) == outcome
    times = {run.path: (run.path / "DONE").stat().st_mtime_ns for run in load_runs(tmp_path)}
    again = pt.sweep(
        Pixels(), "BitFit,LoRA(rank=2)", "0", backbone=backbone, out=tmp_path, epsilon="2/255", **FEW
    )
    assert again == outcome
    assert {run.path: (run.path / "DONE").stat().st_mtime_ns for run in load_runs(tmp_path)} == times


def test_the_runs_are_those_that_train_makes(tmp_path: Path) -> None:
    data, backbone = tiny.data(), own(10)
    pt.sweep(data, "BitFit", [3], backbone=backbone, out=tmp_path / "swept", **FEW)
    (swept,) = load_runs(tmp_path / "swept")
    model = pt.adapt(backbone, pt.BitFit(), seed=3)
    run = pt.train(
        model,
        data,
        pt.AdversarialTraining(pt.PGD(pt.Linf(2 / 255), steps=1)),
        out=tmp_path / "trained",
        steps=len(data.train) // 16,
        batch_size=16,
        attacks=[pt.PGD(pt.Linf(2 / 255), steps=2)],
        points=1,
        seed=3,
        progress=False,
    )
    assert run.key == swept.key
    assert run.points["robust"].tolist() == swept.points["robust"].tolist()


def test_wrong_options_are_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no option 'epsilonn'; did you mean epsilon\?"):
        pt.sweep("digits", epsilonn=1, out=tmp_path)
    with pytest.raises(ValueError, match="margin"):
        pt.sweep("digits", margin=3, out=tmp_path)
    with pytest.raises(
        ValueError, match="by='volume' needs accuracies on shifted images; name some in shifts"
    ):
        pt.sweep("digits", by="volume", out=tmp_path)
    with pytest.raises(ValueError, match=r"10 logits, .* 4 classes"):
        pt.sweep(Pixels(), backbone=own(10), out=tmp_path)
    with pytest.raises(TypeError, match="carries an adapter already"):
        pt.sweep(Pixels(), backbone=pt.adapt(own(4), pt.BitFit()), out=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_sent_to_workers_is_not(tmp_path: Path) -> None:
    local = {**FEW, "workers": 2}
    with pytest.raises(
        ValueError, match=r"workers=2, but .* cannot be sent to them: .*Residual.*give workers=1"
    ):
        pt.sweep(
            Pixels(), "BitFit", backbone=own(4), out=tmp_path, **local
        )  # tiny's classes are local to a function


@pytest.mark.slow
def test_data_of_ones_own_reaches_the_workers(tmp_path: Path, weights: str) -> None:  # noqa: F811
    model = {"backbone": "timm:test_resnet", "weights": weights}
    data = tiny.data()
    outcome = pt.sweep(data, "BitFit", out=tmp_path, **model, **{**FEW, "workers": 2})
    assert outcome.conditions[0].areas[0].seeds == (0, 1)
    assert {run.config["data"] for run in load_runs(tmp_path)} == {data.fingerprint}


def test_an_outcome_prints_as_a_table(tmp_path: Path) -> None:
    outcome = pt.sweep(Pixels(), "BitFit,LoRA(rank=2)", [0], backbone=own(4), out=tmp_path, **FEW)
    heading, columns, first, *_ = str(outcome).splitlines()
    best = outcome.conditions[0].best
    assert heading == "Pixels, L∞ ≤ 2/255, PGD(Linf(2/255), steps=2)"
    assert columns.split() == ["area", "95%", "interval", "best", "clean", "best", "robust", "trainable"]
    assert first.split()[:2] == [best.strategy, f"{best.area:.3f}"]
    assert outcome.verdict in str(outcome)
    assert repr(outcome) == str(outcome)
