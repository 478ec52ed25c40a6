"""The moving average of the weights is what is measured and saved."""

from pathlib import Path

import torch

import paretune as pt
from paretune.interchange.placing import stored_tensors_full_names
from paretune.runs.progress import Status
from paretune.strategies.mechanics.adapting import require_adaptation
from tests import tiny


def test_the_run_ends_with_the_average_of_its_weights_and_has_measured_that(tmp_path: Path) -> None:
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    stored = stored_tensors_full_names(model.module, require_adaptation(model))
    mean = {name: value.detach().clone() for name, value in stored.items()}

    def follow(status: Status) -> None:
        decay = min(0.7, (1 + status.step) / (10 + status.step))
        for name, value in stored.items():
            if value.is_floating_point():
                mean[name] = decay * mean[name] + (1 - decay) * value.detach()

    run = tiny.run(tmp_path / "run", model=model, ema=0.7, progress=follow)
    for name, value in stored.items():
        if value.is_floating_point():
            assert torch.allclose(value, mean[name], atol=1e-5), name
    scores = pt.evaluate(model, tiny.data().report)
    assert scores.clean_accuracy == run.points.clean.iloc[-1]
    other = tiny.backbone(pt.FullFineTune(bn="adapt"))
    pt.remove_adapter(other)
    pt.load_adapter(other, run.path / "adapter")
    images = tiny.data().report[:8][0]
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_training_itself_does_not_see_the_average(tmp_path: Path) -> None:
    for name, ema in (("plain", None), ("averaged", 0.9)):
        tiny.run(tmp_path / name, ema=ema)
    assert (tmp_path / "plain/log.jsonl").read_text() == (tmp_path / "averaged/log.jsonl").read_text()
