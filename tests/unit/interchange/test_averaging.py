"""Means in weight space: the ends of WiSE-FT, closed forms, and what has no mean."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.interchange.averaging import average, effective_state, interpolate
from paretune.strategies import Strategy
from paretune.strategies.mechanics.adapting import require_adaptation
from tests.contracts.backbones import images
from tests.contracts.contract import logits
from tests.unit.interchange.test_adapter_set import BOTH, CONVNET, ON_CONVNET, ON_VIT, VIT, close, draw, make


def drawn(arch: str, strategy: Strategy, seed: int = 0) -> pt.Backbone:
    """Adapted, with random values."""
    model = pt.adapt(make(arch), strategy, seed=seed)
    draw(model, seed)
    return model.eval()


def merged(model: pt.Backbone) -> dict[str, Tensor]:
    """Plain weights, in float64."""
    state = pt.merge_adapter(copy.deepcopy(model)).state_dict()
    return {name.removeprefix("module."): value.double() for name, value in state.items()}


@pytest.mark.parametrize(
    ("arch", "strategies"),
    [(VIT, (*ON_VIT[1:6], *ON_VIT[8:12], pt.LoRA(rank=2) + pt.Adapter())), (CONVNET, ON_CONVNET)],
)
def test_alpha_0_has_the_bits_of_the_start_and_alpha_1_those_of_the_trained_model(
    arch: str, strategies: tuple[Strategy, ...]
) -> None:
    for number, strategy in enumerate(strategies):
        start = pt.adapt(make(arch), strategy, seed=number).eval()
        trained = copy.deepcopy(start)
        draw(trained, number)
        with torch.no_grad():
            next(iter(pt.strategies.trainable_parameters(trained).values())).flatten()[0] = -0.0
        x = images(start.image_size)
        for alpha, end in ((0.0, start), (1.0, trained)):
            expected = effective_state(end)
            found = interpolate(start, trained, alpha)
            assert torch.equal(logits(found, x), logits(end, x)), strategy
            held = effective_state(found)
            assert list(held) == list(expected)
            for name, value in expected.items():
                assert torch.equal(held[name], value), (strategy, name)
                assert torch.equal(held[name].signbit(), value.signbit()), (strategy, name)


def test_what_is_averaged_stays_as_it_was() -> None:
    start = pt.adapt(make(CONVNET), pt.LoRA(rank=2) + pt.Adapter()).train()
    trained = copy.deepcopy(start)
    draw(trained, 0)
    before = [copy.deepcopy(model.state_dict()) for model in (start, trained)]
    halfway = interpolate(start, trained, 0.5)
    draw(halfway, 1)
    for model, state in zip((start, trained), before, strict=True):
        assert model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_of_a_linear_model_the_logits_are_interpolated() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).double()
    start = pt.adapt(pt.Backbone(network, image_size=8), pt.FullFineTune())
    trained = copy.deepcopy(start)
    draw(trained, 0)
    x = images(8)
    for alpha in (0.1, 0.5, 0.9):
        expected = (1 - alpha) * logits(start, x) + alpha * logits(trained, x)
        torch.testing.assert_close(logits(interpolate(start, trained, alpha), x), expected)


@pytest.mark.parametrize("arch", [VIT, CONVNET])
@pytest.mark.parametrize(
    "strategy",
    [pt.LoRA(rank=2, alpha=6.0), pt.IA3(), pt.strategies.SSF(), pt.BitFit() + pt.LoRA(rank=2)],
    ids=repr,
)
def test_what_merges_is_interpolated_as_effective_weights(arch: str, strategy: Strategy) -> None:
    """Of LoRA that is W + alpha (s B A), of which the factors know nothing: their interpolation would give alpha squared."""
    start, trained = pt.adapt(make(arch), strategy).eval(), drawn(arch, strategy)
    plain, changed = merged(start), merged(trained)
    found = {
        name: value.double() for name, value in interpolate(start, trained, 0.3).module.state_dict().items()
    }
    assert list(found) == list(plain)
    assert any(not torch.equal(plain[name], changed[name]) for name in plain if "head" not in name)
    for name, value in found.items():
        torch.testing.assert_close(value, 0.7 * plain[name] + 0.3 * changed[name], rtol=1e-6, atol=1e-7)


def test_the_average_of_loras_is_that_of_their_products_and_not_of_their_factors() -> None:
    models = [drawn(VIT, pt.LoRA(rank=2, alpha=4.0), seed) for seed in range(3)]
    name = "blocks.0.attn.qkv.weight"
    weights = [merged(model)[name] for model in models]
    found = average(models).module.state_dict()[name].double()
    torch.testing.assert_close(found, sum(weights) / 3, rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]
    factors = [pt.strategies.trainable_parameters(model) for model in models]
    wrong = copy.deepcopy(models[0])
    with torch.no_grad():
        for own, value in pt.strategies.trainable_parameters(wrong).items():
            value.copy_(torch.stack([each[own] for each in factors]).mean(0))
    assert (merged(wrong)[name] - found).abs().max() > 100 * 1e-6 * found.abs().max()
    weighted = average(models, (2, 1, 0)).module.state_dict()[name].double()
    torch.testing.assert_close(weighted, (2 * weights[0] + weights[1]) / 3, rtol=1e-6, atol=1e-7)


def test_strategies_that_merge_are_averaged_with_each_other_statistics_and_heads_too() -> None:
    strategies = (
        pt.LoRA(rank=2),
        pt.FullFineTune(bn="adapt"),
        pt.IA3(),
        pt.LinearProbe(),
        pt.strategies.NormTune(bn="adapt"),
    )
    models = [drawn(CONVNET, strategy, number) for number, strategy in enumerate(strategies)]
    states = [merged(model) for model in models]
    found = average(models)
    assert require_adaptation(found).strategy == pt.FullFineTune(bn="adapt")
    held = found.module.state_dict()
    assert not torch.equal(
        held["1.norm.running_var"], make(CONVNET).module.state_dict()["1.norm.running_var"]
    )
    for name, value in held.items():
        if value.is_floating_point():
            mean = torch.stack([state[name] for state in states]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)


@BOTH
def test_a_soup_of_a_model_with_itself_is_the_model_bit_for_bit(
    arch: str, strategies: tuple[Strategy, ...]
) -> None:
    for number, strategy in enumerate(strategies):
        model = drawn(arch, strategy, number)
        x = images(model.image_size)
        assert torch.equal(logits(average([model] * 7), x), logits(model, x)), strategy


def test_the_same_strategy_stays_where_it_holds_the_mean_so_that_its_file_is_small() -> None:
    for strategy in (
        pt.BitFit(),
        pt.LinearProbe(),
        pt.Compacter(),
        pt.VisualPrompt(size=4),
        pt.FullFineTune(where="last:1"),
    ):
        assert (
            require_adaptation(average([drawn(VIT, strategy, seed) for seed in (0, 1)])).strategy == strategy
        )
    found = average([drawn(VIT, pt.LoRA(rank=2) + pt.Adapter(), seed) for seed in (0, 1)])
    assert require_adaptation(found).strategy == pt.FullFineTune() + pt.Adapter()


def test_of_inserted_modules_the_tensors_are_averaged() -> None:
    start = pt.adapt(make(VIT), pt.Compacter()).eval()
    trained = copy.deepcopy(start)
    draw(trained, 3)
    found = pt.strategies.trainable_parameters(interpolate(start, trained, 0.25))
    ends = [pt.strategies.trainable_parameters(model) for model in (start, trained)]
    assert list(found) == list(ends[0])
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * ends[0][name] + 0.25 * ends[1][name])


def test_a_mean_is_saved_loaded_merged_and_attacked_as_any_adapted_model(tmp_path: Path) -> None:
    models = [drawn(CONVNET, strategy, 1) for strategy in (pt.LoRA(rank=2), pt.FullFineTune(bn="adapt"))]
    found = average(models)
    x = images(found.image_size)
    pt.save_adapter(found, tmp_path / "mean")
    assert torch.equal(logits(pt.load_adapter(make(CONVNET), tmp_path / "mean"), x), logits(found, x))
    pt.interchange.save_merged(found, tmp_path / "mean.safetensors")
    plain: Any = make(CONVNET)
    from safetensors.torch import load_file

    plain.module.load_state_dict(load_file(tmp_path / "mean.safetensors"))
    assert torch.equal(logits(plain, x), logits(found, x))
    labels = logits(found, x).argmax(1)
    attacked = pt.PGD(pt.Linf(8 / 255), steps=1)(found, x, labels, seed=0)
    assert ((attacked - x).abs().amax() - 8 / 255).abs() < 1e-6
    assert torch.equal(logits(pt.remove_adapter(found), x), logits(make(CONVNET), x))


def test_a_bare_start_with_a_head_of_its_own_is_a_start() -> None:
    """As in the paper: a zero-shot classifier that was never adapted."""
    start, trained = make(VIT), drawn(VIT, pt.LoRA(rank=2))
    with torch.no_grad():
        start.module.head.weight.fill_(0.5)
    found = interpolate(start, trained, 0.5)
    mean = 0.5 * (0.5 + trained.module.head.weight)
    torch.testing.assert_close(found.module.head.weight, mean)
    x = images(start.image_size)
    assert torch.equal(logits(interpolate(start, trained, 0.0), x), logits(start, x))


def test_plain_modules_with_loaded_adapters_are_averaged_too(tmp_path: Path) -> None:
    models: list[nn.Module] = []
    for seed in (0, 1):
        model = drawn(CONVNET, pt.BitFit(), seed)
        pt.save_adapter(model, tmp_path / str(seed))
        models.append(pt.load_adapter(make(CONVNET).module, tmp_path / str(seed)))
    both = average([drawn(CONVNET, pt.BitFit(), seed) for seed in (0, 1)])
    x = (images(8) - both.mean) / both.std
    close(logits(average(models), x), logits(both.module, x))


def other_base() -> pt.Backbone:
    model = make(CONVNET)
    with torch.no_grad():
        model.module[0].weight[0, 0, 0, 0] += 1  # type: ignore[index, union-attr, operator]
    return model


def other_classes() -> pt.Backbone:
    model = drawn(CONVNET, pt.BitFit())
    model.classes = tuple("zyxwvutsrq")
    return model


@pytest.mark.parametrize(
    ("make_other", "message"),
    [
        (lambda: pt.adapt(other_base(), pt.FullFineTune()), "different base weights have no average"),
        (other_classes, "different classes have no average"),
        (lambda: drawn(VIT, pt.BitFit()), "different architecture have no average"),
        (lambda: drawn(CONVNET, pt.Adapter()), "insert different modules, whose tensors have no average"),
        (
            lambda: pt.adapt(
                pt.Backbone(make(CONVNET).module, image_size=8, mean=(0, 0, 0), sites=["1.norm"]), pt.BitFit()
            ),
            "different pixels have no average",
        ),
    ],
    ids=["base", "classes", "architecture", "inserted", "pixels"],
)
def test_what_has_no_average_is_refused(make_other: Any, message: str) -> None:
    first = drawn(CONVNET, pt.BitFit())
    first.classes = tuple("abcdefghij")
    other = make_other()
    for pair in ((first, other), (other, first)):
        with pytest.raises(ValueError, match=message):
            average(pair)


def test_inserted_modules_of_other_options_have_no_average_though_their_tensors_fit() -> None:
    models = [drawn(VIT, pt.Adapter(scale=scale)) for scale in (1.0, 0.1)]
    with pytest.raises(ValueError, match="insert different modules"):
        average(models)


def test_layers_of_peft_are_refused() -> None:
    layers = pt.strategies.Peft({"peft_type": "LOHA", "r": 2, "target_modules": ["blocks.0.attn.qkv"]})
    model = pt.adapt(make(VIT), layers)
    with pytest.raises(ValueError, match="peft alone knows their weights"):
        average([model, drawn(VIT, pt.BitFit())])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_beyond_the_ends_is_refused(alpha: float) -> None:
    model = drawn(CONVNET, pt.BitFit())
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        interpolate(model, model, alpha)


@pytest.mark.parametrize("weights", [(1, -1), (float("nan"), 1), (0, 0), (1,), (1, 1, 1)])
def test_weights_that_mean_nothing_are_refused(weights: tuple[float, ...]) -> None:
    model = drawn(CONVNET, pt.BitFit())
    with pytest.raises(ValueError, match=r"weights|weight above 0"):
        average([model, model], weights)
    with pytest.raises(ValueError, match="weight above 0"):
        average([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_are_computed_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    models = [drawn(CONVNET, pt.FullFineTune(), seed).to(dtype) for seed in range(3)]
    states = [{name: value.double() for name, value in model.module.state_dict().items()} for model in models]
    for name, value in average(models).module.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == dtype
            assert torch.equal(value, torch.stack([state[name] for state in states]).mean(0).to(dtype))
