"""Anchors in several processes."""

from pathlib import Path

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.training import EWC, L2SP, FeatureDistillation
from tests import tiny
from tests.unit.training.test_processes import launch

OBJECTIVE = (
    pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=2))
    + L2SP(alpha=5)
    + 50 * EWC(examples=20)
    + 0.1 * FeatureDistillation()
)


def trained(out: Path) -> dict[str, torch.Tensor]:
    model = tiny.backbone(pt.LoRA(rank=2))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # which every process draws for itself
    tiny.run(out, model=model, objective=OBJECTIVE)
    return {name: value.detach() for name, value in model.module.named_parameters() if value.requires_grad}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    launch(2, __file__, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in "01")
    alone = trained(tmp_path / "alone")
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-4), name


if __name__ == "__main__":
    import os
    import sys

    torch.save(trained(Path(sys.argv[1]) / "run"), Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
