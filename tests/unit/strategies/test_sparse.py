"""Sparse tuning chooses what the equations of its papers say, trains that and nothing else, and keeps the places."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import paretune as pt
from paretune._values import parse
from paretune.strategies import STRATEGIES, Sparse, adaptation_of, trainable_parameters
from paretune.strategies.mechanics.roles import matrices
from paretune.strategies.mechanics.scores import contrastive_loss
from paretune.sweeps.config import RunConfig
from tests import tiny
from tests.contracts.backbones import make
from tests.contracts.contract import check, logits, perturb

PGD = pt.PGD(pt.Linf(4 / 255), steps=2)
Places = dict[str, set[int]]


def examples(base: pt.Backbone, number: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(number, 3, base.image_size, base.image_size, generator=draw), torch.arange(number) % 3


def convnet() -> pt.Backbone:
    """Of a grouped convolution among others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 6),
            nn.GELU(),
            nn.Linear(6, 3),
        )
    return pt.Backbone(module.eval(), image_size=12)


def gradients(base: pt.Backbone, loss: Tensor) -> dict[str, Tensor]:
    named = {name: matrix.weight for name, matrix in matrices(base.module, base.head).items()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def squared(base: pt.Backbone, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The sum over images of the squared gradient, image by image."""
    total: dict[str, Tensor] = {}
    for image, label in zip(images, labels, strict=True):
        slopes = gradients(base, cross_entropy(base(image[None]), label[None]))
        total = {name: total.get(name, 0) + slope**2 for name, slope in slopes.items()}
    return total


def largest(scores: dict[str, Tensor], count: int) -> Places:
    ranked = sorted(
        (
            (float(value), name, place)
            for name, score in scores.items()
            for place, value in enumerate(score.flatten())
        ),
        reverse=True,
    )
    places: Places = {}
    for _, name, place in ranked[:count]:
        places.setdefault(name, set()).add(place)
    return places


def chosen(strategy: Sparse) -> Places:
    assert strategy.chosen is not None
    return {name: set(places.tolist()) for name, places in strategy.chosen.items()}


@pytest.mark.parametrize("score", ["sensitivity", "adversarial"])
def test_the_largest_sums_of_squared_gradients_are_chosen(score: Any) -> None:
    base = convnet()
    images, labels = examples(base)
    strategy = Sparse(budget=37, score=score, samples=8).chosen_on(base, (images, labels), attack=PGD, seed=4)
    drawn = torch.Generator().manual_seed(4)
    order = torch.randperm(len(images), generator=drawn)[:8]
    images, labels = images[order], labels[order]
    if score == "adversarial":
        images = PGD(base, images, labels, seed=4)
    assert chosen(strategy) == largest(squared(base, images, labels), 37)


def contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Equation 2 of Khosla et al. 2020 in loops."""
    z = features / features.norm(dim=1, keepdim=True)
    loss = z.new_zeros(())
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        below = torch.stack([torch.exp(z[i] @ z[a] / 0.07) for a in others]).sum()
        same = [p for p in others if labels[p] == labels[i]]
        for p in same:
            loss = loss - torch.log(torch.exp(z[i] @ z[p] / 0.07) / below) / len(same)
    return loss


def test_the_loss_of_features_is_the_supervised_contrastive_one() -> None:
    features, labels = (
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 1, 2, 0, 1, 3]),
    )
    torch.testing.assert_close(contrastive_loss(features, labels), contrast(features, labels))


def test_each_neuron_gets_as_many_weights_those_of_the_largest_gradients() -> None:
    base = convnet()
    images, labels = examples(base)
    layers = matrices(base.module, base.head)
    neurons = sum(len(matrix.weight) for matrix in layers.values())
    slopes = gradients(base, contrast(base.module[:-1]((images - base.mean) / base.std), labels))
    for each in (1, 3):
        strategy = Sparse(budget=each * neurons, score="gradient").chosen_on(base, (images, labels))
        for name, slope in slopes.items():
            rows = slope.abs().flatten(1)
            best = (
                rows.argsort(dim=1, descending=True)[:, :each]
                + rows.shape[1] * torch.arange(len(rows))[:, None]
            )
            assert chosen(strategy)[name] == set(best.flatten().tolist()), name
    # What is left of the budget goes to the neurons whose next gradient is the largest.
    more = chosen(Sparse(budget=3 * neurons + 5, score="gradient").chosen_on(base, (images, labels)))
    fourth = {
        name: slope.abs().flatten(1).sort(dim=1, descending=True).values[:, 3]
        for name, slope in slopes.items()
    }
    rows_of = {name: slope[0].numel() for name, slope in slopes.items()}
    expected = largest(fourth, 5)
    found = {
        (name, place // rows_of[name])
        for name, places in more.items()
        for place in places - chosen(strategy)[name]
    }
    assert found == {(name, row) for name, rows in expected.items() for row in rows}


@pytest.mark.parametrize("score", ["gradient", "sensitivity", "adversarial", "random"])
def test_a_choice_follows_from_the_seed_and_changes_nothing(score: Any) -> None:
    base = make("tiny_vit_5m_224").train()
    base.module.get_submodule("stages").eval()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    modes = [part.training for part in base.modules()]
    torch.manual_seed(9)
    before = torch.get_rng_state()
    data = examples(base)
    strategy = Sparse(budget=0.001, score=score, samples=6)
    first, again, other = (strategy.chosen_on(base, data, attack=PGD, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert hash(first) == hash(again)
    assert first != strategy
    # To this one all images look alike, and so do their gradients.
    assert (first == other) == (score in ("sensitivity", "adversarial"))
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in base.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in base.parameters())
    copy.deepcopy(base)  # which a cache of what was differentiated would not allow


def test_a_fraction_is_of_the_weights_in_where() -> None:
    model = pt.adapt(make("test_vit"), Sparse(budget=0.1, score="random", where="last:2 & mlp"))
    inside = [p for name, p in make("test_vit").module.named_parameters() if ".mlp." in name and p.ndim == 2]
    total = sum(parameter.numel() for parameter in inside[-4:])
    assert sum(p.numel() for p in trainable_parameters(model, head=False).values()) == round(0.1 * total)
    assert {name.split(".")[2] for name in trainable_parameters(model, head=False)} == {"mlp"}


def test_merging_changes_the_chosen_weights_and_no_other() -> None:
    base = make("resnet18")
    model = pt.adapt(copy.deepcopy(base), Sparse(budget=500, score="sensitivity"), data=examples(base))
    places = chosen(adaptation_of(model).strategy)  # type: ignore[union-attr, arg-type]
    perturb(model)
    before = {name: value.clone() for name, value in base.module.state_dict().items()}
    pt.merge_adapter(model)
    moved = {
        name.removesuffix(".weight"): set((value != before[name]).flatten().nonzero()[:, 0].tolist())
        for name, value in model.module.state_dict().items()
        if not name.startswith("fc.") and not torch.equal(value, before[name])
    }
    assert moved == places


@pytest.mark.parametrize("arch", ["test_vit", "clip_vit", "mobilenetv3_small_050"])
def test_the_contract_holds_for_what_was_chosen_by_images(arch: str, tmp_path: Path) -> None:
    base = make(arch)
    check(
        base,
        Sparse(budget=0.03, score="adversarial").chosen_on(base, examples(base), attack=PGD),
        tmp_path / "a",
    )


def test_a_file_holds_places_and_values_and_nothing_dense(tmp_path: Path) -> None:
    base = make("vit_tiny_patch16_224")
    model = pt.adapt(copy.deepcopy(base), Sparse(budget=321, score="sensitivity"), data=examples(base))
    perturb(model)
    pt.save_adapter(model, tmp_path / "a")
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    sizes = {
        kind: sum(v.numel() for n, v in stored.items() if n.endswith(kind)) for kind in ("places", "values")
    }
    assert sizes == {"places": 321, "values": 321}
    assert {name for name in stored if not name.endswith(("places", "values"))} == {
        "head.weight",
        "head.bias",
    }
    loaded = pt.load_adapter(copy.deepcopy(base), tmp_path / "a")
    assert adaptation_of(loaded).strategy == adaptation_of(model).strategy  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: places.flip(0), "no ascending numbers"),
        (lambda places: places + 10**6, "no ascending numbers"),
        (lambda places: places - 10**6, "no ascending numbers"),
        (lambda places: places.float(), "no ascending numbers"),
        (lambda places: places[:, None], "no ascending numbers"),
        (lambda places: places[1:], "weights are chosen, where budget=321 means 321"),
        (lambda places: None, "weights are chosen, where budget=321 means 321"),
    ],
)
def test_places_that_a_weight_has_not_are_refused(change: Any, message: str) -> None:
    from paretune.interchange.placing import place, stored_tensors
    from paretune.strategies.mechanics.adapting import require_adaptation

    base = make("vit_tiny_patch16_224")
    model = pt.adapt(copy.deepcopy(base), Sparse(budget=321, score="random"))
    adaptation = require_adaptation(model)
    tensors = {
        name: value.detach().clone() for name, value in stored_tensors(model.module, adaptation).items()
    }
    name = next(name for name, value in tensors.items() if name.endswith("places") and len(value) > 2)
    changed = change(tensors.pop(name))
    tensors |= {} if changed is None else {name: changed}
    with pytest.raises(ValueError, match=message):
        place(base, Sparse(budget=321, score="random"), adaptation.anatomy, tensors, "a file")
    assert adaptation_of(base) is None


def test_adapters_of_one_configuration_and_other_places_share_a_model(tmp_path: Path) -> None:
    base = make("test_vit")
    adapters = pt.interchange.AdapterSet(copy.deepcopy(base))
    x = examples(base, 2)[0]
    expected = []
    for seed in (0, 1):
        model = pt.adapt(copy.deepcopy(base), Sparse(budget=100, score="random"), seed=seed)
        perturb(model, 0.3)
        expected.append(logits(model, x))
        pt.save_adapter(model, tmp_path / str(seed))
        adapters.add(str(seed), tmp_path / str(seed))
    for seed in (0, 1):
        adapters.activate(str(seed))
        torch.testing.assert_close(logits(adapters.model, x), expected[seed])
    mixed = adapters(x, ["0", "1"])
    torch.testing.assert_close(mixed, torch.stack([expected[0][0], expected[1][1]]))


@pytest.mark.parametrize(
    ("strategy", "arguments", "message"),
    [
        (
            Sparse(),
            {},
            r"score='gradient' chooses weights by images of one task, and got nothing; give adapt\(\.\.\., data=data.train",
        ),
        (Sparse(), {"data": tiny.data()}, "and got a ImageData"),
        (
            Sparse(score="adversarial"),
            {"data": (torch.rand(4, 3, 32, 32), torch.arange(4))},
            "needs an attack",
        ),
        (
            Sparse(),
            {"data": (torch.rand(4, 3, 32, 32), torch.arange(4) + 3)},
            "reach from 3 to 6, and the model has 5",
        ),
        (
            Sparse(),
            {"data": (torch.rand(4, 3, 32, 32), torch.arange(4))},
            "only 0 have a gradient other than 0",
        ),
        (
            Sparse(),
            {"data": (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))},
            r"floating point in \[0, 1\], got torch.uint8",
        ),
        (Sparse(budget=10**9, score="random"), {}, "budget=1e.09 is more than the"),
        (Sparse(score="random", where="head"), {}, "no Linear or Conv2d outside the head"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(
    strategy: Sparse, arguments: dict[str, Any], message: str
) -> None:
    base = make("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=message):
        pt.adapt(base, strategy, **arguments)
    assert adaptation_of(base) is None


def test_a_head_of_zeros_is_named_as_the_reason() -> None:
    base = make("vit_tiny_patch16_224")
    nn.init.zeros_(base.module.head.weight)
    with pytest.raises(ValueError, match=r"only 0 have a sensitivity other than 0 .*a head of zeros"):
        pt.adapt(base, Sparse(score="sensitivity"), data=examples(base))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be a whole number of weights, or a fraction"),
        ({"budget": 2.5}, "budget must be a whole number of weights, or a fraction"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"score": "magnitude"}, "score must be 'gradient', 'sensitivity', 'adversarial' or 'random'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparse(**options)


def test_it_is_alone_on_a_model() -> None:
    with pytest.raises(ValueError, match="Sparse cannot be part of a union"):
        Sparse() + pt.BitFit()


@pytest.mark.slow
def test_a_run_of_the_command_line_chooses_under_its_own_attack(tmp_path: Path) -> None:
    strategy = parse("Sparse(budget=400, score='adversarial', samples=8)", STRATEGIES)
    config = RunConfig(
        strategy=strategy, limit=100, epochs=1.0, points=1, train_steps=2, eval_steps=2, seed=3
    )
    data = config.load_data()
    bare = config.load_backbone(len(data.classes), 3)
    attack = pt.PGD(pt.Linf(2 / 255), steps=2)
    expected = strategy.chosen_on(bare, data.train, attack=attack, seed=3)
    assert adaptation_of(config.adapted(data)).strategy == expected  # type: ignore[union-attr]
    config.run(tmp_path / "run", progress=False)
    assert set(pt.load_points(tmp_path)["trainable_parameters"]) == {400 + 10 * 1281}


def test_a_checkpoint_of_other_places_is_refused(tmp_path: Path) -> None:
    from paretune.training.checkpoints import load_checkpoint, save_checkpoint
    from paretune.training.sharding import whole_state

    models = [tiny.backbone(Sparse(budget=20, score="random", where="1"), seed) for seed in (0, 1)]
    optimizers = [torch.optim.SGD(trainable_parameters(model).values()) for model in models]
    save_checkpoint(tmp_path / "c.safetensors", models[0].module, whole_state(optimizers[0]), {})
    load_checkpoint(tmp_path / "c.safetensors", models[0].module, optimizers[0])
    with pytest.raises(ValueError, match="sparse_places is not that of this adapter"):
        load_checkpoint(tmp_path / "c.safetensors", models[1].module, optimizers[1])
