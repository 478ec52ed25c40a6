import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from paretune.attacks import PGD, AttackCopy, Linf, attack_copy
from paretune.attacks.copy import precision
from paretune.attacks.copy.precision import Decision, gradient_cosines, has_bfloat16_units
from tests.unit.attacks.copy.test_engine import fingerprint, timm_model


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def vit(seed: int = 0) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pt.Backbone(timm_model("test_vit", img_size=32), image_size=32)


def ask_for_gradients(victim: AttackCopy, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(victim(leaf).square().sum(), leaf)
    return gradient


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Stand-ins for the hardware, the cosines and the time; returns the list of what was measured."""

    def install(
        units: bool = True, cosines: tuple[float, ...] = (1.0,), ratio: float = 0.5, seconds: float = 1.0
    ) -> list[str]:
        calls: list[str] = []

        def fake(name: str, answer: Any) -> Callable[..., Any]:
            def measure(*_: Any) -> Any:
                calls.append(name)
                return answer

            return measure

        monkeypatch.setattr(precision, "has_bfloat16_units", fake("units", units))
        monkeypatch.setattr(precision, "gradient_seconds", fake("exact time", seconds))
        monkeypatch.setattr(precision, "gradient_cosines", fake("cosines", torch.tensor(cosines)))
        monkeypatch.setattr(precision, "time_ratio", fake("time", ratio))
        return calls

    return install


# ---- the decision -----------------------------------------------------------------------------------------------


def test_a_faithful_and_faster_bfloat16_is_taken_and_the_reason_logged(
    measured: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    calls = measured(cosines=(0.99, 0.97, 0.995), ratio=0.4)
    victim, images = attack_copy(vit(), precision="auto"), torch.rand(3, 3, 32, 32)
    with caplog.at_level(logging.INFO, "paretune"):
        ask_for_gradients(victim, images)
        ask_for_gradients(victim, images)
    assert calls == ["units", "exact time", "cosines", "time"]  # once
    assert victim.precision == "bf16"
    assert victim.decision is not None
    assert (victim.decision.median_cosine, victim.decision.lowest_cosine, victim.decision.time_ratio) == (
        pytest.approx(0.99),
        pytest.approx(0.97),
        0.4,
    )
    messages = [record.message for record in caplog.records if "bf16" in record.message]
    assert len(messages) == 1
    assert victim.decision.reason in messages[0]
    assert "0.40 of the time" in messages[0]
    assert "0.990 at the median" in messages[0]


@pytest.mark.parametrize(
    ("cosines", "ratio", "timed", "why"),
    [
        ((0.97, 0.979, 0.999), 0.1, False, "not faithful"),
        ((0.89, 0.99, 0.999), 0.1, False, "not faithful"),
        ((float("nan"), 1.0, 1.0), 0.1, False, "not faithful"),
        ((0.99, 0.99, 0.99), 0.91, True, "0.91 of the time"),
        ((0.99, 0.99, 0.99), float("nan"), True, "of the time"),
    ],
    ids=["median", "one example", "nan", "slow", "no time"],
)
def test_an_unfaithful_or_slower_bfloat16_is_not_taken(
    measured: Callable[..., list[str]], cosines: tuple[float, ...], ratio: float, timed: bool, why: str
) -> None:
    calls = measured(cosines=cosines, ratio=ratio)
    victim = attack_copy(vit(), precision="auto")
    ask_for_gradients(victim, torch.rand(3, 3, 32, 32))
    assert victim.precision == "fp32"
    assert victim.decision is not None
    assert why in victim.decision.reason
    assert ("time" in calls) == timed


def test_without_bfloat16_units_nothing_is_probed(measured: Callable[..., list[str]]) -> None:
    calls = measured(units=False)
    victim = attack_copy(vit(), precision="auto")
    ask_for_gradients(victim, torch.rand(3, 3, 32, 32))
    assert calls == ["units"]
    assert victim.decision is not None
    assert victim.decision.precision == "fp32"
    assert "no bfloat16 units" in victim.decision.reason


def test_a_model_that_takes_no_time_stays_in_float32(measured: Callable[..., list[str]]) -> None:
    calls = measured(seconds=0.019)
    victim = attack_copy(vit(), precision="auto")
    ask_for_gradients(victim, torch.rand(3, 3, 32, 32))
    assert calls == ["units", "exact time"]
    assert victim.decision == Decision("fp32", "a gradient takes 19.0 ms, so there is little to gain")


def test_a_model_that_cannot_be_measured_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))  # of one class
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda _: True)
    victim, images = attack_copy(network, precision="auto"), torch.rand(2, 3, 2, 2)
    ask_for_gradients(victim, images)
    assert victim.decision is not None
    assert "bfloat16 could not be tried" in victim.decision.reason


def test_only_a_batch_that_asks_for_gradients_decides(measured: Callable[..., list[str]]) -> None:
    calls = measured()
    victim, images = attack_copy(vit(), precision="auto"), torch.rand(3, 3, 32, 32)
    victim(images)
    victim.exact(images)
    with torch.no_grad():
        victim(images.clone().requires_grad_())
    assert victim.precision == "auto"
    assert victim.decision is None
    assert calls == []
    victim.ascend(Linf(0.1), images, images, torch.zeros(3, dtype=torch.long), step_size=0.1)
    assert victim.precision == "bf16"


def test_an_empty_batch_decides_nothing(measured: Callable[..., list[str]]) -> None:
    calls = measured()
    victim, images = (
        attack_copy(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), precision="auto"),
        torch.rand(0, 3, 2, 2),
    )
    assert ask_for_gradients(victim, images).shape == images.shape
    labels = torch.zeros(0, dtype=torch.long)
    assert victim.ascend(Linf(0.1), images, images, labels, step_size=0.1).shape == images.shape
    assert victim.precision == "auto"
    assert calls == []


def test_a_named_precision_is_not_questioned(measured: Callable[..., list[str]]) -> None:
    calls = measured()
    for name in ("fp32", "bf16"):
        victim = attack_copy(vit(), precision=name)  # type: ignore[arg-type]
        ask_for_gradients(victim, torch.rand(3, 3, 32, 32))
        assert victim.precision == name
        assert victim.decision == Decision(name, "asked for")  # type: ignore[arg-type]
    assert calls == []


def test_a_model_that_cannot_run_in_bfloat16_is_attacked_in_float32(
    measured: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = gradient_cosines
    measured()
    monkeypatch.setattr(precision, "gradient_cosines", cosines)

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(images.flatten(1) + torch.zeros(12))  # promoted to float32

    model, images = Stubborn(), torch.rand(2, 3, 2, 2)
    victim = attack_copy(model, precision="auto")
    ask_for_gradients(victim, images)
    assert victim.decision is not None
    assert "bfloat16 could not be tried (RuntimeError" in victim.decision.reason
    assert torch.equal(victim(images), model(images))


@pytest.mark.parametrize("name", ["fp16", "float32", None, True])
def test_an_unknown_precision_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="precision must be 'auto', 'fp32' or 'bf16', got"):
        attack_copy(vit(), precision=name)


def test_other_devices_than_cpu_and_cuda_stay_in_float32() -> None:
    assert not has_bfloat16_units(torch.device("mps"))
    assert not has_bfloat16_units(torch.device("meta"))


# ---- the measurements -------------------------------------------------------------------------------------------


def test_bfloat16_is_faithful_on_a_vision_transformer_and_not_on_a_saturating_network() -> None:
    class Chaotic(nn.Module):
        """Its phase is rounded away in bfloat16, as the statistics of deep ConvNets do to theirs."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 5)

        def forward(self, images: Tensor) -> Tensor:
            return (self.linear(images.flatten(1)) * 1000).sin()

    images = torch.rand(8, 3, 8, 8)
    for model, size, faithful in ((vit(), 32, True), (pt.Backbone(Chaotic(), head="linear"), 8, False)):
        images = torch.rand(8, 3, size, size)
        exact, half = (attack_copy(model, precision=name) for name in ("fp32", "bf16"))  # type: ignore[arg-type]
        cosines = gradient_cosines(exact, half, images)
        assert cosines.shape == (8,)
        assert bool(cosines.median() >= precision.MEDIAN_COSINE) == faithful
        assert bool(cosines.min() >= precision.LOWEST_COSINE) == faithful


def test_cosines_see_gradients_of_any_length_and_ignore_the_label() -> None:
    def linear(scale: float) -> Callable[[Tensor], Tensor]:
        return lambda images: torch.stack(
            [scale * images[:, 0], 0 * images[:, 0], -images[:, 1] * scale], dim=1
        )

    images = torch.rand(4, 3)
    assert gradient_cosines(linear(1e-30), linear(1e30), images).tolist() == pytest.approx([1.0] * 4)
    assert gradient_cosines(linear(0.0), linear(0.0), images).tolist() == [1.0] * 4
    assert gradient_cosines(linear(1.0), linear(0.0), images).tolist() == [0.0] * 4
    assert gradient_cosines(linear(1.0), linear(-1.0), images).tolist() == pytest.approx([-1.0] * 4)


def test_the_time_ratio_is_that_of_the_work() -> None:
    def work(repeats: int) -> Callable[[Tensor], Tensor]:
        def victim(images: Tensor) -> Tensor:
            for _ in range(repeats):
                images = images @ matrix
            return images

        return victim

    images, matrix = torch.rand(64, 256), torch.eye(256)
    assert precision.time_ratio(work(10), work(200), images) > 2  # type: ignore[arg-type]
    assert precision.time_ratio(work(200), work(10), images) < 0.5  # type: ignore[arg-type]


def test_deciding_disturbs_neither_the_model_nor_the_random_state() -> None:
    model = pt.adapt(vit(), pt.LoRA(rank=2)).train()
    images = torch.rand(3, 3, 32, 32)
    before = fingerprint(model)
    victim = attack_copy(model, precision="auto")
    ask_for_gradients(victim, images)
    assert victim.decision is not None
    assert fingerprint(model) == before


# ---- the bfloat16 twin ------------------------------------------------------------------------------------------


def test_a_bfloat16_copy_answers_in_float32_and_verifies_in_float32() -> None:
    model, images = vit(), torch.rand(4, 3, 32, 32)
    victim = attack_copy(model, precision="bf16")
    found, exact = victim(images), victim.exact(images)
    assert found.dtype == exact.dtype == torch.float32
    assert torch.equal(exact, attack_copy(model, precision="fp32")(images))
    assert not torch.equal(found, exact)
    # Weights and activations carry 8 bits.
    assert float((found - exact).norm() / exact.norm()) < 2**-5
    assert not exact.requires_grad
    assert not victim.exact(images.clone().requires_grad_()).requires_grad


def test_normalisation_is_float32_in_a_bfloat16_copy() -> None:
    entered: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, images: Tensor) -> Tensor:
            entered.append(images)
            return self.head(images.flatten(1))

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.rand(2, 3, 2, 2)
    attack_copy(pt.Backbone(Spy(), mean=mean, std=std), precision="bf16")(images)
    expected = (
        (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    ).bfloat16()
    assert torch.equal(entered[-1], expected)


@pytest.mark.some(3)
@pytest.mark.parametrize(
    "strategy", [pt.LoRA(rank=2), pt.Compacter(reduction=8), pt.BitFit(), pt.FullFineTune()], ids=repr
)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_refreshed_bfloat16_copy_equals_a_fresh_one_bit_for_bit(name: str, strategy: Any) -> None:
    options = {"img_size": 32} if name == "test_vit" else {}
    model = pt.adapt(pt.Backbone(timm_model(name, **options), image_size=32), strategy)
    images = torch.rand(4, 3, 32, 32)
    victim = attack_copy(model, precision="bf16")
    stale, stale_exact = victim(images), victim.exact(images)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    victim.refresh()
    fresh = attack_copy(model, precision="bf16")
    assert torch.equal(victim(images), fresh(images))
    assert torch.equal(victim.exact(images), fresh.exact(images))
    assert not torch.equal(victim(images), stale)
    assert not torch.equal(victim.exact(images), stale_exact)


def living_bytes() -> int:
    """Memory of all tensors alive, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and thing.device.type == "cpu":
            with contextlib.suppress(
                RuntimeError, NotImplementedError
            ):  # the compiler's own kinds have no memory
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(("name", "share"), [("bf16", 0.5), ("fp32", 1.0)])
def test_a_copy_keeps_one_tensor_for_each_tensor_of_the_merged_model(name: Any, share: float) -> None:
    model = pt.adapt(vit(), pt.LoRA(rank=2))
    merged = sum(part.numel() * 4 for key, part in model.named_parameters() if "lora_" not in key)
    images = torch.rand(2, 3, 32, 32)
    before = living_bytes()
    victim = attack_copy(model, precision=name)
    victim(images).sum()
    victim.refresh()
    kept = living_bytes() - before
    assert share * merged <= kept <= share * merged * 1.02


def test_the_float32_twin_is_made_only_when_it_is_asked_for(measured: Callable[..., list[str]]) -> None:
    measured()
    victim, images = attack_copy(vit(), precision="auto"), torch.rand(2, 3, 32, 32)
    ask_for_gradients(victim, images)
    assert victim._exact is None
    victim.exact(images)
    assert victim._exact is not None


# ---- strength ---------------------------------------------------------------------------------------------------


def trained_vit() -> tuple[nn.Module, Tensor, Tensor]:
    """A small vision transformer that reads digits, and 256 images it was not trained on."""
    data = pt.load_data("digits", img_size=8)
    train, test = (
        (
            torch.stack([split[i][0] for i in range(count)]).float(),
            torch.tensor([int(split[i][1]) for i in range(count)]),
        )
        for split, count in ((data.train, 900), (data.report, 256))
    )
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=2, embed_dim=48, depth=3, num_heads=3, num_classes=10
    )
    model = pt.Backbone(module, image_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(12):
        for rows in torch.randperm(900).split(64):
            loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), *test


@pytest.mark.slow
def test_an_attack_in_bfloat16_is_as_strong_as_one_in_float32() -> None:
    model, images, labels = trained_vit()
    exact = attack_copy(model, precision="fp32")

    def robust(victim: AttackCopy, seed: int) -> float:
        images_adv = PGD(Linf(16 / 255), steps=10)(victim, images, labels, seed=seed)
        return float((exact.exact(images_adv).argmax(1) == labels).float().mean())

    assert float((exact.exact(images).argmax(1) == labels).float().mean()) > 0.8
    half = attack_copy(model, precision="bf16")
    in_float32 = [robust(exact, seed) for seed in range(3)]
    in_bfloat16 = [robust(half, seed) for seed in range(3)]
    assert 0.05 < min(in_float32) < max(in_float32) < 0.8  # neither out of reach nor saturated
    # 256 images: the best of three seeds may differ by 2 %, five images.
    assert min(in_bfloat16) <= min(in_float32) + 0.02
