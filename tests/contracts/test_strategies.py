"""What must hold for every strategy on every architecture."""

import copy

import pytest
import torch
from torch import Tensor

import paretune as pt
from paretune.attacks import attack_copy
from paretune.strategies import STRATEGIES
from tests.contracts.backbones import ARCHITECTURES, images, make

EXAMPLES = [
    *(cls() for cls in STRATEGIES.values()),
    pt.LoRA(rank=2, targets=("all",), rslora=True, alpha=4.0),
    pt.BitFit(bn="adapt"),
    pt.Compacter(n=2, rank=2, reduction=8, train_norms=True),
]
CASES = [
    pytest.param(arch, strategy, id=f"{arch}-{strategy!r}") for arch in ARCHITECTURES for strategy in EXAMPLES
]


def adapted(arch: str, strategy: pt.strategies.Strategy) -> tuple[pt.Backbone, Tensor, Tensor]:
    """A backbone with ``strategy`` on it, images, and the logits it had before."""
    backbone = make(arch)
    x = images(backbone.image_size)
    with torch.no_grad():
        before = backbone(x)
    return pt.adapt(backbone, strategy), x, before


def perturb(backbone: pt.Backbone, scale: float = 0.02) -> None:
    """Move every trainable parameter, so that zero-initialised factors no longer hide the others."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pt.trainable_parameters(backbone).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def logits(model: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(("arch", "strategy"), CASES)
def test_contract(arch: str, strategy: pt.strategies.Strategy, tmp_path) -> None:
    backbone = make(arch)
    base = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in backbone.module.named_parameters()}
    backbone, x, before = adapted(arch, strategy)

    # Adapting changes no logit.
    assert torch.equal(logits(backbone, x), before)

    # Exactly the declared parameters train, and each of them is alive.
    perturb(backbone)
    trainable = pt.trainable_parameters(backbone)
    wanting = {name for name, parameter in backbone.module.named_parameters() if parameter.requires_grad}
    assert wanting == set(trainable)
    backbone.train()
    backbone(x).square().sum().backward()
    backbone.eval()
    for name, parameter in backbone.module.named_parameters():
        alive = parameter.grad is not None and bool(parameter.grad.any())
        assert alive == (name in trainable), name

    # A step moves the logits, and only trainable parameters (and adapting statistics) move.
    stepped = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    torch.optim.SGD(trainable.values(), lr=0.01).step()
    moving = {parameter.data_ptr() for parameter in trainable.values()}  # shared ones have several names
    for name, value in backbone.module.state_dict().items():
        assert value.data_ptr() in moving or torch.equal(value, stepped[name]), name
    after = logits(backbone, x)
    assert not torch.equal(after, before)

    # A deep copy computes the same, with its own parameters.
    twin = copy.deepcopy(backbone)
    assert torch.equal(logits(twin, x), after)
    with torch.no_grad():
        for parameter in pt.trainable_parameters(twin).values():
            parameter.zero_()
    assert torch.equal(logits(backbone, x), after)

    # The attack copy agrees up to rounding: folding a batch norm reorders float32 sums.
    torch.testing.assert_close(
        attack_copy(backbone)(x), after, rtol=1e-3, atol=1e-3 * float(after.abs().max())
    )

    # Saved, and loaded into a fresh plain model: the same logits, bit for bit.
    pt.save_adapter(backbone, tmp_path / "adapter")
    fresh = make(arch)
    pt.load_adapter(fresh.module, tmp_path / "adapter")
    assert torch.equal(logits(fresh, x), after)

    # Merged: plain weights under the base's names, and the same logits.
    if strategy.why_not_mergeable:
        with pytest.raises(ValueError, match="cannot be merged"):
            pt.merge_adapter(backbone)
    else:
        merged = pt.merge_adapter(copy.deepcopy(backbone))
        assert list(merged.module.state_dict()) == list(base)
        assert torch.equal(logits(merged, x), after)

    # Removed: the base, bit for bit, with its own flags.
    pt.remove_adapter(backbone)
    state = backbone.module.state_dict()
    assert list(state) == list(base)
    assert all(torch.equal(state[name], base[name]) for name in base)
    assert {name: parameter.requires_grad for name, parameter in backbone.module.named_parameters()} == flags
    assert torch.equal(logits(backbone, x), before)


@pytest.mark.parametrize(("arch", "strategy"), CASES)
def test_input_gradient_matches_finite_differences(arch: str, strategy: pt.strategies.Strategy) -> None:
    backbone, x, _ = adapted(arch, strategy)
    perturb(backbone)
    backbone.double()
    x = x.double().clone().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(backbone(x).square().sum(), x)
    h = 1e-8
    ahead, behind = (logits(backbone, x.detach() + sign * h * direction).square().sum() for sign in (1, -1))
    # The rounding of both sums, over 2h; h is so small that no unit crosses a kink of its activation.
    rounding = 1e3 * torch.finfo(torch.float64).eps * float(ahead) / h
    torch.testing.assert_close(
        (gradient * direction).sum(), (ahead - behind) / (2 * h), rtol=1e-5, atol=rounding
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pt.BitFit(), pt.LoRA(rank=2), pt.Compacter()], ids=repr)
@pytest.mark.parametrize("arch", ["test_vit", "resnet18"])
def test_compiles_without_a_graph_break(arch: str, strategy: pt.strategies.Strategy) -> None:
    backbone, x, _ = adapted(arch, strategy)
    perturb(backbone)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, x), logits(backbone, x))


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_lite0"])
def test_batchnorm_statistics_follow_only_if_asked_to_and_survive_saving(arch: str, tmp_path) -> None:
    for policy in ("frozen", "adapt"):
        backbone, x, _ = adapted(arch, pt.LinearProbe(bn=policy))
        before = {n: b.clone() for n, b in backbone.module.named_buffers() if n.endswith("running_mean")}
        backbone.train()(x)
        moved = [
            n for n, b in backbone.module.named_buffers() if n in before and not torch.equal(b, before[n])
        ]
        assert bool(moved) == (policy == "adapt")
        backbone.eval()
        after = logits(backbone, x)
        pt.save_adapter(backbone, tmp_path / policy)
        assert torch.equal(logits(pt.load_adapter(make(arch), tmp_path / policy), x), after)


@pytest.mark.parametrize(
    ("strategy", "count"),
    [
        (pt.BitFit(), 102_912),
        (pt.LoRA(rank=8, targets=("q", "v")), 294_912),
        (pt.LoRA(rank=8, targets=("q", "k", "v")), 442_368),
        (pt.LoRA(rank=8, targets=("q", "k", "v", "fc1", "fc2")), 1_179_648),
        (pt.Compacter(), 57_088),
        (pt.Compacter(placement="mlp"), 28_576),
        (pt.LinearProbe(), 0),
    ],
    ids=lambda value: repr(value) if not isinstance(value, int) else "",
)
def test_parameter_counts_on_vit_b_16_are_those_of_the_papers(
    strategy: pt.strategies.Strategy, count: int
) -> None:
    with torch.device("meta"):
        backbone = pt.load_backbone("timm:vit_base_patch16_224", num_classes=10, pretrained=False)
        pt.adapt(backbone, strategy)
    assert sum(p.numel() for p in pt.trainable_parameters(backbone, head=False).values()) == count
