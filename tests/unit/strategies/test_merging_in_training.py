"""A model is merged by what it computes in evaluation mode."""

import torch

import paretune as pt
from tests import tiny


def test_dropout_has_no_part_in_the_weight_that_is_merged_in_training_mode() -> None:
    evaluated, training = (tiny.backbone(pt.LoRA(rank=2, dropout=0.5)).train(mode) for mode in (False, True))
    for model in (evaluated, training):
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if name.endswith("lora_B"):
                    parameter.fill_(0.5)
        pt.merge_adapter(model)
    for name, value in evaluated.module.state_dict().items():
        assert torch.equal(value, training.module.state_dict()[name]), name
    assert training.module.training
