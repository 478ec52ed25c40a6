"""L2-SP is the squared distance of the weights in use from those at the start, and the size of the head."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune._values import parse
from paretune.strategies import Strategy
from paretune.strategies.mechanics.adapting import trainable_parameters
from paretune.training import L2SP, OBJECTIVES, Natural
from paretune.training.objectives import Term, TrainingBatch
from tests import tiny
from tests.contracts.backbones import make
from tests.contracts.strategies import MATRIX, made_for

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=2)


def batch(count: int = 6, classes: int = 10) -> TrainingBatch:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    places = torch.arange(count)
    return TrainingBatch(images, places % classes, 100 + places, places, 0.0, 7, classes - 1)


def change(model: pt.Backbone, size: float = 0.1) -> None:
    """As by some steps of training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def value_and_gradient(
    term: Term, model: pt.Backbone, *, mixed: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss, logits = term.loss(model, batch(), None)
    assert logits is None
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return loss, {n: g for n, g in zip(trained, found, strict=True) if g is not None}


def merged(model: pt.Backbone) -> dict[str, Tensor]:
    """The plain weights that the network computes with."""
    return dict(pt.merge_adapter(copy.deepcopy(model).eval()).module.named_parameters())


def plain_distance(model: pt.Backbone, start: pt.Backbone) -> Tensor:
    now, then = merged(model), merged(start)
    return torch.stack([(now[n] - then[n]).square().sum() for n in now if not n.startswith("5.")]).sum()


def test_of_full_fine_tuning_it_is_the_equation_of_the_paper() -> None:
    model = tiny.backbone(pt.FullFineTune())
    start = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    term = L2SP(alpha=0.3, beta=0.7).begin(model, tiny.data(), 0)
    change(model)
    loss, gradient = value_and_gradient(term, model)
    now = {name: p.detach() for name, p in model.module.named_parameters()}
    body = sum(float((now[n] - start[n]).double().square().sum()) for n in now if not n.startswith("5."))
    head = sum(float(now[n].double().square().sum()) for n in now if n.startswith("5."))
    assert loss.item() == pytest.approx(0.15 * body + 0.35 * head, rel=1e-5)
    for name, value in now.items():
        expected = 0.7 * value if name.startswith("5.") else 0.3 * (value - start[name])
        assert torch.allclose(gradient[name], expected, atol=1e-6), name
    assert len(gradient) == len(now)


@pytest.mark.parametrize("loaded", [False, True])
def test_of_lora_it_is_the_norm_of_the_difference_of_the_weight(loaded: bool) -> None:
    """Also where training goes on from a difference that is not zero; dropout, which training draws, has no part in it."""
    model = tiny.backbone(pt.LoRA(rank=2, alpha=6, dropout=0.5)).train()
    if loaded:
        change(model, 0.3)
    start = copy.deepcopy(model)
    term = L2SP(alpha=2, beta=0).begin(model, tiny.data(), 0)
    change(model)
    loss, gradient = value_and_gradient(term, model)
    products, trained = [], {}
    for part, before in zip(model.module.modules(), start.module.modules(), strict=True):
        if hasattr(part, "lora_A"):
            a, b = (getattr(part, name) for name in ("lora_A", "lora_B"))
            products.append((3.0 * (b @ a - before.lora_B @ before.lora_A)).square().sum())  # type: ignore[operator]
            trained[part] = a, b
    expected = torch.stack(products).sum()
    assert torch.allclose(loss, expected, rtol=1e-4)
    assert torch.allclose(loss, plain_distance(model, start), rtol=1e-4)
    by_hand = torch.autograd.grad(expected, [p for pair in trained.values() for p in pair])
    body = [value for name, value in gradient.items() if not name.startswith("5.")]
    for ours, theirs in zip(body, by_hand, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    assert all(part.training for part in model.modules() if part is not model.module[1].norm)  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    "strategy",
    [
        pt.LoRA(rank=2) + pt.BitFit(),
        pt.LoRA(rank=2) + pt.FullFineTune(),
        pt.strategies.IA3(),
        pt.strategies.NormTune(),
        pt.LoRA(rank=2) + pt.strategies.SSF(),
    ],
    ids=repr,
)
def test_of_what_merges_it_is_the_distance_of_the_merged_weights(strategy: Strategy) -> None:
    model = tiny.backbone(strategy)
    start = copy.deepcopy(model)
    term = L2SP(alpha=2, beta=0).begin(model, tiny.data(), 0)
    change(model)
    loss, gradient = value_and_gradient(term, model)
    assert torch.allclose(loss, plain_distance(model, start), rtol=1e-3)
    assert loss > 0
    assert {n for n in gradient if not n.startswith("5.")} == {
        n for n, p in model.module.named_parameters() if p.requires_grad and not n.startswith("5.")
    }


def test_of_what_is_inserted_it_is_the_distance_of_its_parameters() -> None:
    model = tiny.backbone(pt.Adapter(reduction=4))
    start = {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad}
    term = L2SP(alpha=2, beta=0).begin(model, tiny.data(), 0)
    change(model)
    loss, _ = value_and_gradient(term, model)
    now = dict(model.module.named_parameters())
    own = [(now[n] - value).square().sum() for n, value in start.items() if not n.startswith("5.")]
    assert len(own) == 4
    assert torch.allclose(loss, torch.stack(own).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [pt.FullFineTune(), pt.LoRA(rank=2), pt.Adapter(), pt.LinearProbe(), pt.strategies.IA3()],
    ids=repr,
)
def test_at_the_start_it_is_zero_and_draws_nowhere(strategy: Strategy) -> None:
    model = tiny.backbone(strategy)
    loss, gradient = value_and_gradient(L2SP(beta=0.5).begin(model, tiny.data(), 0), model)
    head = sum(p.square().sum().item() for n, p in model.module.named_parameters() if n.startswith("5."))
    assert loss.item() == pytest.approx(0.25 * head, rel=1e-6)
    assert not any(bool(value.any()) for name, value in gradient.items() if not name.startswith("5."))


def test_a_weight_that_two_layers_share_counts_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    module = nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4), first, second, nn.Linear(4, 3)
    )
    for strategy in (pt.FullFineTune(), pt.LoRA(rank=1)):
        model = pt.adapt(pt.Backbone(copy.deepcopy(module).eval(), image_size=8), strategy)
        start = copy.deepcopy(model)
        term = L2SP(alpha=2, beta=0).begin(model, tiny.data(), 0)
        change(model)
        assert torch.allclose(value_and_gradient(term, model)[0], plain_distance(model, start), rtol=1e-4)


def test_mixed_precision_leaves_it_in_float32() -> None:
    for strategy in (pt.FullFineTune(), pt.LoRA(rank=2)):
        model = tiny.backbone(strategy)
        term = L2SP().begin(model, tiny.data(), 0)
        change(model)
        plain, gradient = value_and_gradient(term, model)
        mixed, same = value_and_gradient(term, model, mixed=True)
        assert mixed.dtype == torch.float32
        assert torch.equal(plain, mixed)
        assert all(torch.equal(same[name], value) for name, value in gradient.items())


def test_parts_of_a_batch_count_it_once(tmp_path: Path) -> None:
    def end(name: str, **options: Any) -> dict[str, Tensor]:
        model = tiny.backbone(pt.LoRA(rank=2))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        objective = pt.AdversarialTraining(ATTACK) + L2SP(alpha=20, beta=2)
        tiny.run(tmp_path / name, model=model, objective=objective, steps=4, batch_size=10, **options)
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    whole, parts = end("whole"), end("parts", accumulate=3)
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=1e-5), name


def test_a_strong_anchor_keeps_what_trains_near_its_start(tmp_path: Path) -> None:
    moved = []
    for alpha in (0.0, 100.0):
        model = tiny.backbone(pt.FullFineTune())
        start = copy.deepcopy(model)
        objective = pt.AdversarialTraining(ATTACK) + L2SP(alpha=alpha, beta=0.01)
        tiny.run(tmp_path / str(alpha), model=model, objective=objective)
        moved.append(plain_distance(model, start).item())
    assert moved[1] < moved[0] / 2


def test_a_parameter_that_the_network_does_not_use_is_found_as_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The penalty gives a gradient to all that is trained, which says nothing of the network."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.idle = nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), nn.Linear(8, 8)
            self.head = nn.Linear(8, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images))

    noted = []
    for objective in (Natural(), Natural() + L2SP()):
        model = pt.adapt(pt.Backbone(Idle().eval(), image_size=8, head="head"), pt.FullFineTune())
        with caplog.at_level("WARNING"):
            tiny.run(tmp_path / str(len(noted)), model=model, objective=objective, attacks=[ATTACK])
        noted.append([r.args[-1] for r in caplog.records if "get no gradient" in str(r.args)])  # type: ignore[index]
        caplog.clear()
    assert noted[0] == noted[1]
    assert noted[0]
    assert "idle.weight, idle.bias" in str(noted[0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"alpha": -1}, "alpha"), ({"beta": True}, "beta"), ({"alpha": 0, "beta": 0}, "both 0")],
)
def test_numbers_that_hold_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        L2SP(**fields)


def test_layers_of_peft_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    strategy = pt.strategies.Peft({"peft_type": "LORA", "r": 2, "target_modules": ["1.conv"]})
    with pytest.raises(ValueError, match=r"'1\.conv', do not show"):
        tiny.run(
            tmp_path / "run", model=tiny.backbone(strategy), objective=Natural() + L2SP(), attacks=[ATTACK]
        )
    assert not (tmp_path / "run").exists()


def test_it_is_added_to_what_learns() -> None:
    made = Natural() + 0.5 * L2SP(alpha=1)
    assert repr(made) == "Natural() + 0.5 * L2SP(alpha=1.0)"
    assert parse(repr(made), OBJECTIVES) == made
    assert made.learns
    assert made.reaches_all
    assert not L2SP().learns


@pytest.mark.some(11)
@pytest.mark.parametrize("name", sorted(MATRIX.keys() - {"Peft LoHa", "Depthwise adapter"}))
def test_every_strategy_starts_at_zero_and_is_held_in_all_that_it_trains(name: str) -> None:
    model = make("test_vit")
    strategy = made_for(name, model)
    term = L2SP(alpha=2, beta=0).begin(pt.adapt(model, strategy), tiny.data(), 0)
    assert value_and_gradient(term, model)[0] == 0
    start = copy.deepcopy(model)
    change(model, 0.02)
    loss, gradient = value_and_gradient(term, model)
    body = trainable_parameters(model, head=False)
    assert all(gradient[each].any() for each in body)
    assert (loss > 0) == bool(body)
    if not strategy.why_not_mergeable:
        now, then = merged(model), merged(start)
        apart = sum((now[n] - then[n]).square().sum().item() for n in now if not n.startswith("head."))
        assert loss.item() == pytest.approx(apart, rel=1e-4)
