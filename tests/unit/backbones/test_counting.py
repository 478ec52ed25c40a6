"""What trains of a backbone, in numbers."""

import pytest

import paretune as pt
from tests import tiny


def test_what_trains_is_printed_as_peft_does(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.backbone(pt.LinearProbe())
    model.print_trainable_parameters()
    trained = sum(each.numel() for each in pt.strategies.trainable_parameters(model).values())
    every = sum(each.numel() for each in model.parameters())
    share = f"{100 * trained / every:.4f}"
    assert 0 < trained < every
    assert (
        capsys.readouterr().out
        == f"trainable params: {trained:,} || all params: {every:,} || trainable%: {share}\n"
    )
