"""What must hold for every strategy on every architecture: one function, run by the tests and by the table of support."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import attack_copy
from paretune.strategies import Strategy, Union
from paretune.strategies.mechanics.base import base_parameters
from tests.contracts.backbones import images


class Refused(ValueError):
    """A strategy does not take a model, which stays as it was; the message says why."""


def starts_at_base(strategy: Strategy) -> bool:
    """Whether a fresh adapter changes no logit; prompt tokens take part in the attention from the start."""
    parts = strategy.strategies if isinstance(strategy, Union) else (strategy,)
    return not any(isinstance(part, pt.VisualPrompt) and part.kind != "padding" for part in parts)


def outcome(base: pt.Backbone, strategy: Strategy, directory: Path) -> tuple[str, str]:
    """``"works"``, or ``"refused"`` and the reason: what is wrong, without the way out and the list of names."""
    try:
        check(base, strategy, directory)
    except Refused as error:
        return "refused", str(error).split("; ")[0].replace("\n", " ")
    return "works", ""


def check(base: pt.Backbone, strategy: Strategy, directory: Path) -> None:
    """Run the whole contract of ``strategy`` on copies of ``base``, which stays as it is.

    Raises:
        Refused: the strategy refuses this model.
        AssertionError: a promise is broken.
    """
    x = images(base.image_size)
    before = logits(base, x)
    state = {name: value.clone() for name, value in base.module.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in base.module.named_parameters()}
    backbone = copy.deepcopy(base)
    try:
        assert pt.adapt(backbone, strategy) is backbone
    except ValueError as error:
        unchanged(backbone, state, flags)
        raise Refused(str(error)) from error

    # Adapting changes no logit.
    exact = not isinstance(
        strategy, pt.strategies.Peft
    )  # peft adds its difference to the output instead of the weight
    if starts_at_base(strategy):
        like = freeze_like(copy.deepcopy(base), backbone)
        same(logits(backbone, x), logits(like, x), exact)

    # Exactly the declared parameters train, and each of them is alive.
    perturb(backbone)
    trainable = pt.strategies.trainable_parameters(backbone)
    wanting = {name for name, parameter in backbone.module.named_parameters() if parameter.requires_grad}
    assert wanting == set(trainable)
    inputs = x.clone().requires_grad_()
    train_without_chance(backbone)
    backbone(inputs).square().sum().backward()
    backbone.eval()
    for name, parameter in backbone.module.named_parameters():
        alive = parameter.grad is not None and bool(parameter.grad.any())
        if name in trainable and not alive and name in idle_parameters(base, x):
            continue
        assert alive == (name in trainable), f"{name} {'gets no gradient' if name in trainable else 'trains'}"

    # A step moves the logits, and only trainable parameters (and adapting statistics) move.
    stepped = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    # Steps of one length whatever the scale of the loss, so that random weights do not blow up.
    norm = torch.stack([p.grad.norm() for p in trainable.values() if p.grad is not None]).norm()
    torch.optim.SGD(trainable.values(), lr=0.01 / float(norm)).step()
    moving = {parameter.data_ptr() for parameter in trainable.values()}  # shared ones have several names
    for name, value in backbone.module.state_dict().items():
        assert value.data_ptr() in moving or torch.equal(value, stepped[name]), name
    after = logits(backbone, x)
    assert not torch.equal(after, before)

    # A deep copy computes the same, with its own parameters.
    twin = copy.deepcopy(backbone)
    assert torch.equal(logits(twin, x), after)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(twin).values():
            parameter.zero_()
    assert torch.equal(logits(backbone, x), after)

    # The attack copy agrees up to rounding: folding a batch norm reorders float32 sums.
    slack = 1e-3 * float(after.abs().max())
    torch.testing.assert_close(attack_copy(backbone, precision="fp32")(x), after, rtol=1e-3, atol=slack)

    # Saved, and loaded into a fresh plain model: the same logits, bit for bit.
    pt.save_adapter(backbone, directory)
    fresh = copy.deepcopy(base)
    pt.load_adapter(fresh.module, directory)
    assert torch.equal(logits(fresh, x), after)
    del fresh

    gradients(backbone, x)

    # Merged: plain weights under the base's names, and the same logits.
    if strategy.why_not_mergeable:
        with pytest.raises(ValueError, match="cannot be merged"):
            pt.merge_adapter(backbone)
    else:
        merged = copy.deepcopy(backbone)
        try:
            pt.merge_adapter(merged)
        except ValueError as error:
            if not isinstance(
                strategy, pt.strategies.Peft
            ):  # of which not every tuner merges, and never wrongly
                raise AssertionError(f"refused to merge: {error}") from error
            assert torch.equal(logits(merged, x), after)
        else:
            assert list(merged.module.state_dict()) == list(state)
            same(logits(freeze_like(merged, backbone), x), after, exact)

    # Removed: the base, bit for bit, with its own flags.
    pt.remove_adapter(backbone)
    unchanged(backbone, state, flags)
    assert torch.equal(logits(backbone, x), before)


def freeze_like(plain: pt.Backbone, adapted: pt.Backbone) -> pt.Backbone:
    """Let only those parameters of ``plain`` train that do in ``adapted``, because torch rounds a product by that.

    ``torch.matmul`` folds its batch or not depending on whether the weight requires a gradient.
    """
    names = base_parameters(adapted.module)
    training = {names[name] for name in pt.strategies.trainable_parameters(adapted) if name in names}
    for name, parameter in plain.module.named_parameters():
        parameter.requires_grad_(name in training)
    return plain


def idle_parameters(base: pt.Backbone, x: Tensor) -> set[str]:
    """Names of the model's own parameters that classification does not use, such as the mask token of DINOv2."""
    plain = copy.deepcopy(base).requires_grad_(True)
    plain(x).square().sum().backward()
    return {name for name, parameter in plain.module.named_parameters() if parameter.grad is None}


def train_without_chance(backbone: pt.Backbone) -> None:
    """Switch to training mode, but for what drops branches or inputs by chance, which would look like dead parameters."""
    backbone.train()
    for part in backbone.modules():
        drops = "Drop" in type(part).__name__ or "StochasticDepth" in type(part).__name__
        if drops or isinstance(
            getattr(part, "dropout", None), float
        ):  # of LoRA: all three colours, once in eight times
            part.eval()


def unchanged(backbone: pt.Backbone, state: dict[str, Tensor], flags: dict[str, bool]) -> None:
    """Assert that the model has these tensors, bit for bit, and no others, and that these parameters train."""
    now = backbone.module.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert {name: parameter.requires_grad for name, parameter in backbone.module.named_parameters()} == flags
    assert not hasattr(backbone.module, "peft_config")


def gradients(backbone: pt.Backbone, x: Tensor) -> None:
    """Assert in float64 that the gradient for the image is that of finite differences, and that added parameters matter.

    They must not only by rounding, as a scale does that a norm undoes. The model's own parameters may be without effect:
    the bias of the keys shifts every product with a query alike.
    """
    wide = copy.deepcopy(backbone).double()
    own = base_parameters(wide.module)
    added = {
        name: value for name, value in pt.strategies.trainable_parameters(wide).items() if name not in own
    }
    inputs = x.double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    # The logarithm keeps the sums of squares of random networks within the range of the rounding below.
    outcome = wide(inputs).square().sum().log()
    gradient, *slopes = torch.autograd.grad(outcome, [inputs, *added.values()])
    sizes = {name: float(slope.square().mean().sqrt()) for name, slope in zip(added, slopes, strict=True)}
    for name, size in sizes.items():
        assert size > 1e-11 * max(sizes.values()), f"{name} has no effect"
    slope = float((gradient * direction).sum())
    # On the way from one point to the other a unit may cross the kink of its activation. On a shorter way it then does not;
    # that one counts where rounding leaves three digits.
    (far, slack), (near, more) = (finite_difference(wide, x.double(), direction, h) for h in (1e-8, 1e-9))
    agrees = abs(far - slope) <= slack + 1e-5 * abs(slope)
    assert agrees or abs(near - slope) <= more + 1e-5 * abs(slope) <= 1e-3 * abs(slope), (slope, far, near)


def finite_difference(model: nn.Module, x: Tensor, direction: Tensor, h: float) -> tuple[float, float]:
    """Slope of the logarithm of the sum of squared logits, and how far rounding may move it."""
    ahead, behind = (logits(model, x + sign * h * direction).square().sum().log() for sign in (1, -1))
    rounding = 1e3 * torch.finfo(torch.float64).eps * max(1.0, abs(float(ahead))) / h
    return float((ahead - behind) / (2 * h)), rounding


def same(found: Tensor, expected: Tensor, exact: bool) -> None:
    """Assert equality, bit for bit where the algebra allows."""
    if exact:
        assert torch.equal(found, expected), f"apart by {float((found - expected).abs().max()):.2g}"
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def perturb(backbone: pt.Backbone, scale: float = 0.02) -> None:
    """Move every trainable parameter, so that zero-initialised factors no longer hide the others."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(backbone).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Without a gradient."""
    with torch.no_grad():
        found: Tensor = model(x)
    return found
