"""LwF, distillation of answers and of features: the loss of each is that of its paper, by hand."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.backbones.heads import pretrained_head
from paretune.runs.progress import Status
from paretune.strategies import Strategy
from paretune.training import EWC, FARE, Distillation, FeatureDistillation, LwF, Natural
from paretune.training.objectives import Objective
from paretune.training.objectives.anchored import Anchored
from paretune.training.objectives.twin import pretrained_twin
from tests import tiny
from tests.unit.training.objectives.test_l2sp import ATTACK, batch, change
from tests.unit.training.test_loop import same_run

NAME = "timm:test_vit"


def weights(classes: int = 7, name: str = "test_vit") -> dict[str, Tensor]:
    """As of a pretrained model with a head of its own."""
    import timm

    torch.manual_seed(5)
    network = timm.create_model(name, num_classes=classes, img_size=32)
    network.get_classifier().weight.data.normal_()
    return {key: value.clone() for key, value in network.state_dict().items()}


def vit(strategy: Strategy, state: dict[str, Tensor] | None = None) -> pt.Backbone:
    made = pt.load_backbone(NAME, num_classes=10, img_size=32, weights=state or weights())
    return pt.adapt(made, strategy)


def images(count: int = 6) -> Any:
    drawn = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return replace(batch(count), images=drawn)


def begun(objective: Objective, model: pt.Backbone) -> Any:
    return objective.begin(model, tiny.data(), 0)


def former(state: dict[str, Tensor]) -> nn.Module:
    """The pretrained classifier itself, of seven classes."""
    made = pt.load_backbone(NAME, num_classes=7, img_size=32, weights=state)
    assert torch.equal(made.module.get_submodule("head").weight, state["head.weight"])  # type: ignore[arg-type]
    return made.eval()


def test_lwf_is_the_softened_cross_entropy_to_the_former_answers_through_the_former_head() -> None:
    state = weights()
    old, model, examples = former(state), vit(pt.LoRA(rank=2), state), images()
    term = begun(LwF(), model)
    change(model)
    model.eval()
    loss, logits = term.loss(model, examples, term.attacked(None, examples))
    assert logits is None
    network: Any = model.module
    features = network.forward_head(network.forward_features(model.enter(examples.images)), pre_logits=True)
    new = features @ state["head.weight"].T + state["head.bias"]
    # Equations 2 and 3 as they are written, by probabilities and their roots.
    y, y_hat = old(examples.images).softmax(1).detach() ** 0.5, new.softmax(1) ** 0.5
    y, y_hat = y / y.sum(1, keepdim=True), y_hat / y_hat.sum(1, keepdim=True)
    each = -(y * y_hat.log()).sum(1)
    expected = each.mean()
    weighted = replace(examples, weights=torch.arange(6.0))
    weighed, _ = term.loss(model, weighted, term.attacked(None, examples))
    assert torch.allclose(weighed, (each * weighted.weights).mean(), rtol=1e-4)  # type: ignore[operator]
    assert torch.allclose(loss, expected, rtol=1e-4)
    trained = [p for n, p in model.module.named_parameters() if p.requires_grad and not n.startswith("head.")]
    ours, theirs = (torch.autograd.grad(each, trained, retain_graph=True) for each in (loss, expected))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert any(bool(value.abs().max() > 1e-4) for value in ours)


def test_where_nothing_is_forgotten_lwf_draws_nowhere() -> None:
    model, examples = vit(pt.FullFineTune()), images()
    term = begun(LwF(), model)
    loss, _ = term.loss(model.eval(), examples, term.attacked(None, examples))
    trained = [p for n, p in model.module.named_parameters() if p.requires_grad and not n.startswith("head.")]
    gradients = torch.autograd.grad(loss, trained)
    assert all(bool(value.abs().max() < 1e-5) for value in gradients)


def test_the_former_head_is_that_of_the_weights_whatever_the_classes() -> None:
    for classes in (7, 10):
        state = weights(classes)
        head = pretrained_head(vit(pt.LinearProbe(), state))
        assert torch.equal(head.weight, state["head.weight"])
        assert head.bias is not None
        assert torch.equal(head.bias, state["head.bias"])


def test_the_former_head_of_a_model_of_transformers_is_read_again(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=7,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config)
    network.save_pretrained(tmp_path / "whole")
    network.vit.save_pretrained(tmp_path / "headless")
    for place in ("whole", "headless"):
        transformers.ViTImageProcessor().save_pretrained(tmp_path / place)
    whole, headless = (
        pt.load_backbone(f"hf:{tmp_path / place}", num_classes=3) for place in ("whole", "headless")
    )
    assert torch.equal(pretrained_head(whole).weight, network.classifier.weight)
    with pytest.raises(ValueError, match="came without a head"):
        pretrained_head(headless)


def test_the_former_head_of_a_model_of_timm_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create, asked = timm.create_model, []

    def published(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)
        torch.manual_seed(len(asked))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", published)
    model = pt.load_backbone("timm:test_vit", num_classes=3)
    head = pretrained_head(model)
    assert asked == [True, True]
    assert head.weight.shape == (1000, 64)


def test_without_a_former_head_lwf_is_refused() -> None:
    model = pt.load_backbone(NAME, num_classes=10, img_size=32, pretrained=False)
    headless = {name: value for name, value in weights().items() if not name.startswith("head.")}
    for made in (model, pt.load_backbone(NAME, num_classes=10, img_size=32, weights=headless)):
        with pytest.raises(ValueError, match="came without a head"):
            LwF().check(pt.adapt(made, pt.LinearProbe()), tiny.data())


def test_ewc_through_the_former_head_is_that_of_the_former_task() -> None:
    """Of the same network with seven classes, whose own head it is."""
    state, data = weights(), pt.load_data("digits", img_size=32, limit=40)
    old = pt.adapt(pt.load_backbone(NAME, num_classes=7, img_size=32, weights=state), pt.FullFineTune())
    expected = EWC(fisher="exact", examples=2)._information(Anchored(old, ""), old, data, 0)
    model = vit(pt.FullFineTune(), state)
    objective = EWC(fisher="exact", head="pretrained", examples=2)
    found = objective._information(Anchored(model, ""), model, data, 0)
    assert all(torch.allclose(value, found[name], rtol=1e-4, atol=1e-9) for name, value in expected.items())
    with pytest.raises(ValueError, match="empirical"):
        EWC(fisher="empirical", head="pretrained")


def test_features_are_drawn_to_those_before_adapting() -> None:
    model, examples = tiny.backbone(pt.LoRA(rank=2)), batch()
    origin: Any = copy.deepcopy(model.module)[:-1].eval()
    term = begun(FeatureDistillation(), model)
    change(model)
    model.eval()
    loss, _ = term.loss(model, examples, term.attacked(None, examples))
    entered = (examples.images - 0.5) / 0.5
    network: Any = model.module
    apart = network[:-1](entered) - origin(entered).detach()
    assert torch.allclose(loss, 0.5 * apart.square().sum() / len(apart), rtol=1e-5)
    assert loss > 0


def teacher(place: Path) -> pt.Backbone:
    model = tiny.backbone(pt.FullFineTune())
    tiny.run(place, model=model)
    return model


def test_distillation_is_the_divergence_from_the_softened_answers_of_the_teacher(tmp_path: Path) -> None:
    taught, model, examples = teacher(tmp_path / "run").eval(), tiny.backbone(pt.LoRA(rank=2)), batch()
    change(model, 0.3)
    for place in ("run", "run/adapter"):
        term = begun(Distillation(str(tmp_path / place), temperature=3), model)
        model.eval()
        loss, logits = term.loss(model, examples, term.attacked(None, examples))
        p, q = (answer(examples.images) / 3 for answer in (taught, model))
        expected = 9 * nn.functional.kl_div(q.log_softmax(1), p.softmax(1).detach(), reduction="batchmean")
        assert torch.allclose(loss, expected, rtol=1e-4)
        assert logits is not None
        assert torch.equal(logits, model(examples.images))
    assert Distillation("x").learns


def test_without_labels_a_run_learns_what_its_teacher_answers(tmp_path: Path) -> None:
    taught = teacher(tmp_path / "teacher").eval()
    model = tiny.backbone(pt.FullFineTune(), seed=0)
    objective = Distillation(str(tmp_path / "teacher"))
    shown, _ = tiny.data().train[:]
    before = float((model.eval()(shown) - taught(shown)).square().mean().detach())
    tiny.run(
        tmp_path / "student", model=model, objective=objective, attacks=[ATTACK], steps=30, eval_every=30
    )
    after = float((model.eval()(shown) - taught(shown)).square().mean().detach())
    assert after < 0.5 * before


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = tiny.backbone(pt.LoRA(rank=2))
    with pytest.raises(ValueError, match="Distillation: teacher"):
        begun(Distillation(str(tmp_path / "nothing")), model)
    other = vit(pt.LinearProbe())
    pt.save_adapter(other, tmp_path / "other")
    with pytest.raises(ValueError, match="Distillation: teacher"):
        begun(Distillation(str(tmp_path / "other")), model)
    with pytest.raises(ValueError, match="Distillation: teacher"):
        tiny.run(
            tmp_path / "run", model=model, objective=Natural() + Distillation("nothing"), attacks=[ATTACK]
        )
    assert not (tmp_path / "run").exists()
    for wrong in (0, -1, True, float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            LwF(temperature=wrong)


def test_a_run_does_not_go_on_with_another_teacher(tmp_path: Path) -> None:
    first = tiny.backbone(pt.LinearProbe())
    pt.save_adapter(first, tmp_path / "teacher")
    kept = begun(Distillation(str(tmp_path / "teacher")), first).tensors()
    again = begun(Distillation(str(tmp_path / "teacher")), first)
    again.load(kept)
    change(first)
    shutil.rmtree(tmp_path / "teacher")
    pt.save_adapter(first, tmp_path / "teacher")
    with pytest.raises(ValueError, match="another one than this run began with"):
        begun(Distillation(str(tmp_path / "teacher")), first).load(kept)


def test_terms_of_one_sum_share_the_pretrained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit(pt.LoRA(rank=2))
    sums = begun(Natural() + FeatureDistillation() + LwF() + FARE(ATTACK), model)
    first, *others = (term.origin for _, term in sums.terms[1:])
    assert all(each is first for each in others)
    assert len(others) == 2
    change(model)  # trained since
    with monkeypatch.context() as patched:
        patched.setattr(copy, "deepcopy", None)  # nothing is copied to find it out
        assert pretrained_twin(model) is first


@pytest.mark.parametrize(
    "changed",
    [
        lambda model: model.module.cls_token.data.add_(1),
        lambda model: model.mean.add_(0.1),
        lambda model: model.to(torch.float64),
    ],
)
def test_a_model_with_other_values_has_another_twin(changed: Callable[[pt.Backbone], object]) -> None:
    model = vit(pt.LoRA(rank=2))
    first = pretrained_twin(model)
    changed(model)
    assert pretrained_twin(model) is not first


@pytest.mark.parametrize("objective", [FeatureDistillation(), 0.5 * LwF()], ids=repr)
def test_beside_an_attack_they_train(objective: Objective, tmp_path: Path) -> None:
    data = pt.load_data("digits", img_size=32, limit=80)
    pt.train(
        vit(pt.LoRA(rank=2)),
        data,
        pt.AdversarialTraining(ATTACK) + objective,
        out=tmp_path / "run",
        steps=2,
        batch_size=8,
        accumulate=2,
        mixed_precision="bf16",
        attacks=[ATTACK],
        progress=False,
    )


def test_a_run_with_a_teacher_goes_on_exactly(tmp_path: Path) -> None:
    teacher(tmp_path / "teacher")
    options: dict[str, Any] = {
        "objective": Natural() + Distillation(str(tmp_path / "teacher")),
        "attacks": [ATTACK],
    }
    tiny.run(tmp_path / "whole", **options)

    def stop(status: Status) -> None:
        if status.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "stopped", progress=stop, **options)
    tiny.run(tmp_path / "stopped", **options)
    same_run(tmp_path / "whole", tmp_path / "stopped")


def test_each_counts_one_more_pass_of_an_image() -> None:
    for objective in (FeatureDistillation(), LwF(), Distillation("teacher")):
        assert (pt.AdversarialTraining(ATTACK) + objective).gradient_evaluations(10) == 4
    assert (pt.AdversarialTraining(ATTACK) + EWC()).gradient_evaluations(10) == 3
