"""Batch norms are folded into the convolutions before them, and nothing else is."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune.attacks import attack_copy
from tests.unit.attacks.copy.test_engine import (
    Block,
    _own_randomness,
    assert_same_function,
    shake,
    train_a_step,
)

__all__ = ["_own_randomness"]  # fixtures


class UsedTwice(Block):
    def features(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        return self.bn(x) + x


class ChangedBefore(Block):
    def features(self, images: Tensor) -> Tensor:
        return self.bn(self.conv(images).mul_(2))


class ConvCalledTwice(Block):
    def features(self, images: Tensor) -> Tensor:
        return self.bn(self.conv(images)) + self.conv(images.flip(3))


class NormCalledTwice(Block):
    def features(self, images: Tensor) -> Tensor:
        x = self.bn(self.conv(images))
        return x + self.bn(x)


class WeightReadElsewhere(Block):
    """Nothing about the tensors that flow shows this; only the comparison of logits does."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) * self.conv.weight.sum()


class NormReadElsewhere(Block):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.bn.weight.sum()


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


def with_standardised_weight() -> Block:
    model = Block()
    model.conv = Standardised(3, 4, 3, bias=False)
    return model


def with_hook_on_norm() -> Block:
    model = Block()
    model.bn.register_forward_hook(lambda _m, _a, output: output * 2)
    return model


def with_hook_before_norm() -> Block:
    model = Block()
    model.bn.register_forward_pre_hook(lambda _m, _a: None)  # it must still be called
    return model


def with_child_of_norm() -> Block:
    model = Block()
    model.bn.add_module("adapter", nn.Linear(1, 1))
    return model


def with_hook_on_conv() -> Block:
    model = Block()
    model.conv.register_forward_hook(lambda _m, _a, output: output.sin())
    return model


def clamp_weight(conv: nn.Module, _args: Any) -> None:
    conv.weight.data.clamp_(-0.1, 0.1)


def with_hook_that_sets_the_weight() -> Block:
    model = Block()
    model.conv.register_forward_pre_hook(clamp_weight)
    return model


def with_batch_statistics() -> Block:
    model = Block()
    model.bn = nn.BatchNorm2d(4, track_running_stats=False)
    return model


@pytest.mark.parametrize(
    "make",
    [
        UsedTwice,
        ChangedBefore,
        ConvCalledTwice,
        NormCalledTwice,
        WeightReadElsewhere,
        NormReadElsewhere,
        with_standardised_weight,
        with_hook_on_norm,
        with_hook_before_norm,
        with_child_of_norm,
        with_hook_on_conv,
        with_hook_that_sets_the_weight,
        with_batch_statistics,
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_what_cannot_be_folded_is_left_alone(
    make: Callable[[], nn.Module], fresh: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    if fresh:  # a batch norm that is the identity, and a head of zeros, must not hide the mistake
        model.bn.eps = 1e-30
        model.head.weight.data.zero_()
    else:
        shake(model)
    victim, images = attack_copy(model), torch.rand(3, 3, 6, 6)
    assert_same_function(victim, model, images)
    assert victim.folded == ()
    # The check in float64 is the last resort: what can be seen without it must not reach it.
    assert ("stay unfolded" in caplog.text) == (make in (WeightReadElsewhere, NormReadElsewhere))
    train_a_step(model, images)
    victim.refresh()
    assert_same_function(victim, model, images)


def test_a_failed_check_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="paretune"):
        attack_copy(shake(WeightReadElsewhere()))(torch.rand(1, 3, 6, 6))
        attack_copy(shake(NormReadElsewhere()))(torch.rand(1, 3, 6, 6))
    assert "stay unfolded in the attack copy: its logits differ by" in caplog.text
    assert "the check in float64 failed with AttributeError" in caplog.text


def test_a_norm_that_is_fed_by_one_convolution_is_folded_beside_one_that_is_not() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.own = UsedTwice(), Block()

        def forward(self, images: Tensor) -> Tensor:
            return self.shared(images) + self.own(images)

    model = shake(Both())
    victim = attack_copy(model)
    assert_same_function(victim, model, torch.rand(2, 3, 6, 6))
    assert victim.folded == ("own.bn",)
