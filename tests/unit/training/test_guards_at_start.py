"""What the first step of a run must notice: parameters that cannot train, and batch norms without statistics."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import paretune as pt
from paretune.strategies import Strategy
from paretune.training.calibration import calibrate_batchnorm
from paretune.training.guards import TrainingDiverged, check_divergence, check_gradients, far_statistics
from tests import tiny


class Block(nn.Module):
    """A residual block that can be cut off from the gradient in each of the usual ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "dropped" and self.training and torch.rand(()) < 0.5:
            return x
        if self.how == "no_grad":
            with torch.no_grad():
                return x + self.mlp(self.norm(x))
        if self.how in ("reentrant", "checkpoint") and self.training:  # as transformers does
            return checkpoint(self._go, x, use_reentrant=self.how == "reentrant")  # type: ignore[no-any-return]
        if self.how == "detached":
            return x + self.mlp(self.norm(x)).detach()
        return self._go(x) if self.how != "never" else x

    def _go(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    def __init__(self, *hows: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.blocks = nn.ModuleList(Block(how) for how in hows)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def backbone(*hows: str, strategy: Strategy) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = pt.Backbone(Network(*hows).eval(), image_size=8)
    sites = [
        pt.backbones.Site(f"blocks.{i}.mlp", "output", "mlp", 16, -1, f"blocks.{i}") for i in range(len(hows))
    ]
    made._sites = [site for site, how in zip(sites, hows, strict=True) if how != "never"]
    return pt.adapt(made, strategy)


def first_step(model: pt.Backbone, seed: int = 0) -> torch.Tensor:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own word on reentrant checkpointing
        model.train()(images).square().sum().backward()
        return images


def checked(model: pt.Backbone, seed: int = 0) -> str | None:
    images = first_step(model, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_gradients(model, images)


@pytest.mark.parametrize("strategy", [pt.Adapter(), pt.Compacter(n=2), pt.LoRA(rank=1)], ids=repr)
@pytest.mark.parametrize("how", ["reentrant", "no_grad", "detached"])
def test_every_parameter_that_is_cut_off_is_named(how: str, strategy: Strategy) -> None:
    model = backbone("plain", how, strategy=strategy)
    # Behind a trainable adapter the input requires a gradient, so that reentrant checkpointing cuts off nothing.
    if how == "reentrant":
        model = backbone(how, "plain", strategy=strategy)
        cut = {name for name in pt.strategies.trainable_parameters(model) if name.startswith("blocks.0.mlp")}
        if isinstance(strategy, pt.LoRA):  # of the stem too
            assert checked(model) is None
            return
    else:
        cut = {name for name in pt.strategies.trainable_parameters(model) if name.startswith("blocks.1.mlp")}
    with pytest.raises(ValueError, match="got no gradient in the first backward pass") as error:
        checked(model)
    shared = {name for name in cut if name.endswith("rule")}  # the others' gradient reaches it
    assert all(name in str(error.value) for name in cut - shared)
    assert ("use_reentrant=False" in str(error.value)) == (how == "reentrant")


@pytest.mark.parametrize("how", ["plain", "checkpoint"])
def test_a_gradient_of_zero_is_a_gradient(how: str) -> None:
    model = backbone(how, how, strategy=pt.LoRA(rank=1))  # A's is zero as long as B is
    assert checked(model) is None
    assert any(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", [pt.Adapter(), pt.FullFineTune()], ids=repr)
def test_layers_that_training_skips_by_chance_stop_nothing(strategy: Strategy, seed: int) -> None:
    assert checked(backbone("dropped", "dropped", strategy=strategy), seed) is None


def test_what_the_model_never_uses_is_a_warning_of_its_own_parameters_and_an_error_of_added_ones() -> None:
    warning = checked(backbone("plain", "never", strategy=pt.FullFineTune())) or ""
    assert "6 of 16 trainable parameters get no gradient" in warning
    assert "blocks.1.mlp.0.weight" in warning
    assert "blocks.0" not in warning
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.0\.parametrizations\.weight\.0\.lora_A.*where="):
        checked(backbone("plain", "never", strategy=pt.LoRA(rank=1)))


def test_reentrant_checkpointing_is_an_error_for_the_models_own_parameters_too() -> None:
    with pytest.raises(ValueError, match=r"6 of 8 .*blocks\.0\.norm\.weight.*use_reentrant=False"):
        checked(backbone("reentrant", strategy=pt.FullFineTune(where="blocks.*")))


def test_what_the_user_froze_after_adapt_is_named() -> None:
    model = backbone("plain", strategy=pt.FullFineTune())
    model.module.stem.requires_grad_(False)
    assert "stem.weight, stem.bias" in (checked(model) or "")
    model = backbone("plain", strategy=pt.Adapter())
    model.module.blocks.requires_grad_(False)
    with pytest.raises(ValueError, match=r"4 of 6 .*requires_grad was switched off after adapt"):
        checked(model)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checking_changes_no_value_no_gradient_no_mode_and_no_random_number() -> None:
    model = backbone("reentrant", "dropped", strategy=pt.FullFineTune(where="blocks.*"))
    images = first_step(model)
    before = copy.deepcopy(model.state_dict())
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="no gradient"):
        check_gradients(model, images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    for name, parameter in model.named_parameters():
        kept = gradients[name]
        assert (parameter.grad is None) == (kept is None)
        assert kept is None or (parameter.grad is not None and torch.equal(parameter.grad, kept))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "objective", [pt.training.Natural(), pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=1))]
)
def test_a_run_stops_before_its_first_step_also_when_it_goes_on(tmp_path: Path, objective: Any) -> None:
    strategy = pt.Adapter()
    model = backbone("reentrant", "plain", strategy=strategy)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="use_reentrant=False"):
        tiny.run(tmp_path / "run", model=model, objective=objective)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "run" / "DONE").exists()

    def interrupt(status: Any) -> None:
        if status.step == 5:
            raise KeyboardInterrupt

    arguments = {"objective": objective, "eval_every": 2}
    with pytest.raises(KeyboardInterrupt):
        tiny.run(
            tmp_path / "on",
            model=backbone("plain", "plain", strategy=strategy),
            progress=interrupt,
            **arguments,
        )
    with pytest.raises(ValueError, match="use_reentrant=False"):
        tiny.run(tmp_path / "on", model=backbone("reentrant", "plain", strategy=strategy), **arguments)


def test_a_run_notes_the_parameters_that_cannot_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = tiny.run(tmp_path, model=backbone("plain", "never", strategy=pt.FullFineTune()))
    assert "blocks.1.mlp.0.weight" in caplog.text
    assert len(run.points)


def convolutions(seed: int = 0) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pt.Backbone(tiny.network().eval(), image_size=8, sites=["1.norm"])


def test_frozen_batch_norms_without_statistics_are_noted_with_the_remedies_which_help() -> None:
    data = tiny.data()
    images = data.train[:32][0]
    for strategy in (pt.FullFineTune(), pt.LoRA(rank=1), pt.Compacter(n=2)):
        finding = far_statistics(pt.adapt(convolutions(), strategy), images) or ""
        assert "statistics of no data" in finding
        assert "bn='adapt'" in finding
        assert "calibrate_batchnorm" in finding
        assert (
            far_statistics(pt.adapt(calibrate_batchnorm(convolutions(), data.train), strategy), images)
            is None
        )
    assert far_statistics(pt.adapt(convolutions(), pt.FullFineTune(bn="adapt")), images) is None
    assert (
        far_statistics(backbone("plain", strategy=pt.FullFineTune()), images) is None
    )  # it has no batch norm
    other = calibrate_batchnorm(convolutions(), data.train)
    other.module[1].norm.running_var *= 100
    assert "statistics of other data" in (far_statistics(pt.adapt(other, pt.LoRA(rank=1)), images) or "")


def test_the_error_of_a_run_that_diverges_repeats_what_was_noted_of_its_batch_norms() -> None:
    finding = far_statistics(pt.adapt(convolutions(), pt.FullFineTune()), tiny.data().train[:32][0])
    with pytest.raises(TrainingDiverged, match=r"AdamW\(0\.03\)\. Noticed before: frozen batch norms"):
        check_divergence([torch.tensor(float("nan"))], 3, 0.1, findings=["transfer failure", finding or ""])


def test_calibration_gives_batch_norms_the_statistics_of_the_images_and_nothing_else() -> None:
    data = tiny.data()
    plain, made = convolutions(), convolutions()
    assert calibrate_batchnorm(made, data.train, images=64, batch_size=64) is made
    norm, before = made.module[1].norm, plain.state_dict()
    inputs: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    made(data.train[:64][0])
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, inputs[0].transpose(0, 1).flatten(1).var(1))
    assert norm.momentum == 0.1
    assert not any(part.training for part in made.modules())
    own = {"module.1.norm.running_mean", "module.1.norm.running_var", "module.1.norm.num_batches_tracked"}
    assert all(
        torch.equal(value, before[name]) for name, value in made.state_dict().items() if name not in own
    )
    with pytest.raises(ValueError, match="call remove_adapter"):
        calibrate_batchnorm(pt.adapt(plain, pt.LinearProbe()), data.train)
    with pytest.raises(ValueError, match="needs batch norms"):
        calibrate_batchnorm(pt.Backbone(Network("plain").eval(), image_size=8), data.train)
