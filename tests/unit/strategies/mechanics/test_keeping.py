"""Effective weights that are kept: always what they would be if made anew."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies import Strategy
from paretune.strategies.mechanics.adapting import restore
from paretune.strategies.mechanics.keeping import KeptDelta
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits, perturb

VIT = "deit3_small_patch16_224"  # of two blocks
BOTH = pytest.mark.parametrize("strategy", [pt.LoRA(rank=2), pt.IA3(), pt.IA3() + pt.LoRA(rank=2)], ids=repr)


def adapted(strategy: Strategy) -> pt.Backbone:
    model = pt.adapt(make(VIT), strategy).eval()
    perturb(model)
    return model


def anew(model: pt.Backbone, x: Tensor) -> Tensor:
    """Logits of a copy, which keeps nothing."""
    return logits(copy.deepcopy(model), x)


def kept(model: nn.Module) -> list[Tensor]:
    deltas = [part for part in model.modules() if isinstance(part, KeptDelta)]
    assert deltas
    return [delta._kept.result for delta in deltas if delta._kept is not None]


@BOTH
def test_a_second_forward_pass_makes_no_effective_weight_and_gives_the_same(strategy: Strategy) -> None:
    model = adapted(strategy)
    x = images(model.image_size)
    first = logits(model, x)
    weights = kept(model)
    assert weights
    assert torch.equal(logits(model.eval(), x), first)
    assert all(a is b for a, b in zip(kept(model), weights, strict=True))


def _step(model: pt.Backbone) -> None:
    """With gradients from the images, in evaluation mode."""
    model(images(model.image_size)).square().sum().backward()
    torch.optim.AdamW(pt.strategies.trainable_parameters(model).values(), lr=0.1).step()


def _behind_the_back(model: pt.Backbone) -> None:
    """As some optimizers and averages do, which torch does not count."""
    for parameter in pt.strategies.trainable_parameters(model).values():
        parameter.data.mul_(1.5)


def _base(model: pt.Backbone) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.mul_(1.1)


def _restored(model: pt.Backbone) -> None:
    restore(
        model.module, {name: value * 1.5 for name, value in pt.strategies.trainable_parameters(model).items()}
    )


def _loaded(model: pt.Backbone) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def _new_storage(model: pt.Backbone) -> None:
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data


@BOTH
@pytest.mark.parametrize(
    "change", [_step, _behind_the_back, _base, _restored, _loaded, _new_storage], ids=lambda c: c.__name__
)
def test_every_change_of_the_values_shows(strategy: Strategy, change: Callable[[pt.Backbone], None]) -> None:
    model = adapted(strategy)
    x = images(model.image_size)
    before = logits(model, x)
    change(model)
    after = logits(model, x)
    assert not torch.equal(after, before)
    assert torch.equal(after, anew(model, x))


@BOTH
def test_an_effective_weight_that_somebody_wrote_to_is_made_again(strategy: Strategy) -> None:
    model = adapted(strategy)
    x = images(model.image_size)
    before = logits(model, x)
    for part in model.modules():
        if isinstance(part, nn.Linear) and nn.utils.parametrize.is_parametrized(part):
            with torch.no_grad():
                part.weight.mul_(1.5)
    assert torch.equal(logits(model, x), before)


@BOTH
def test_nothing_is_kept_with_gradients_in_training_or_by_a_copy(strategy: Strategy) -> None:
    model = adapted(strategy)
    x = images(model.image_size)
    model(x)
    assert not kept(model)
    logits(model, x)
    assert kept(model)
    assert not kept(copy.deepcopy(model))
    model.train()
    assert not kept(model)
    logits(model, x)
    assert not kept(model)


@BOTH
def test_other_precision_and_inference_mode_are_right(strategy: Strategy) -> None:
    model = adapted(strategy)
    x = images(model.image_size)
    before = logits(model, x)
    with torch.inference_mode():
        assert torch.equal(model(x), before)
    assert torch.equal(logits(model, x), before)
    wide = logits(model.double(), x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize(
    "strategy", [pt.LoRA(rank=2), pt.LoRA(rank=2, targets=("q", "v")), pt.IA3()], ids=repr
)
def test_training_makes_no_effective_weight_and_has_the_gradients_of_one(strategy: Strategy) -> None:
    model = adapted(strategy).double()
    x = images(model.image_size).double()
    trained = list(pt.strategies.trainable_parameters(model).values())
    expected = torch.autograd.grad(model(x).square().sum(), trained)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.training = True  # without what drops parts by chance
    found = torch.autograd.grad(model(x).square().sum(), trained)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
