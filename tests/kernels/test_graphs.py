"""The loop with and without a CUDA graph. Here a pretended graph replays by running the loop again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paretune.attacks.threats import L2, Linf
from paretune.kernels import graphs, random_start
from paretune.kernels.comparing import NORMS
from paretune.kernels.graphs import StepLoop
from paretune.kernels.reference import Norm

IMAGES = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
GOALS = torch.arange(4)
WEIGHT = torch.randn(6, 75, generator=torch.Generator().manual_seed(1))
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def gradient_of(network_input: Tensor, goals: Tensor) -> Tensor:
    with torch.enable_grad():
        network_input = network_input.detach().requires_grad_()
        logits = network_input.float().flatten(1) @ WEIGHT.T
        loss = torch.nn.functional.cross_entropy(logits, goals, reduction="sum")
        return torch.autograd.grad(loss, network_input)[0]


def loop_of(norm: Norm, **changes: Any) -> StepLoop:
    return StepLoop(**({"gradient_of": gradient_of, "norm": norm, "steps": 5} | changes))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("normalised", [False, True])
def test_the_loop_is_pgd_written_with_the_threats(norm: Norm, normalised: bool) -> None:
    threat = Linf(0.05) if norm == "Linf" else L2(0.5)
    mean, std = (
        (MEAN.view(1, 3, 1, 1), STD.view(1, 3, 1, 1)) if normalised else (torch.zeros(1), torch.ones(1))
    )
    seed = torch.tensor(3)
    wanted = random_start(IMAGES, threat.epsilon, seed, norm=norm)
    for _ in range(5):
        gradient = gradient_of((wanted - mean) / std, GOALS) / std
        wanted = threat.project(threat.step(wanted, gradient, 0.02), IMAGES)
    loop = loop_of(norm, mean=MEAN, std=STD) if normalised else loop_of(norm)
    found = loop(IMAGES, GOALS, step_size=0.02, epsilon=threat.epsilon, seed=seed)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)


def test_the_network_sees_its_own_type_and_one_gradient_a_step() -> None:
    seen: list[torch.dtype] = []

    def watching(network_input: Tensor, goals: Tensor) -> Tensor:
        seen.append(network_input.dtype)
        return gradient_of(network_input, goals)

    loop = loop_of("Linf", gradient_of=watching, out_dtype=torch.bfloat16, steps=3)
    found = loop(IMAGES, GOALS, step_size=0.02, epsilon=0.05, seed=torch.tensor(0))
    assert seen == [torch.bfloat16] * 3
    assert found.dtype is torch.float32


def test_without_a_random_start_the_loop_starts_at_the_image() -> None:
    loop = loop_of("Linf", steps=1, starts_randomly=False)
    found = loop(IMAGES, GOALS, step_size=0.01, epsilon=0.05, seed=torch.tensor(0))
    assert (found - IMAGES).abs().max() <= 0.01 + 1e-7


def test_a_loop_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        loop_of("Linf", steps=0)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A graph that runs its loop again into one fixed result; says what was run."""
    log: list[str] = []

    def record(
        warm_up: Callable[[], Tensor], loop: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], None], Tensor]:
        warm_up()
        result = torch.full_like(loop(), torch.nan)
        log.append("captured")

        def replay() -> None:
            log.append("replayed")
            result.copy_(loop())

        return replay, result

    monkeypatch.setattr(graphs, "record_graph", record)
    monkeypatch.setattr(graphs, "check_capturable", lambda images: None)
    return log


@pytest.mark.parametrize("norm", NORMS)
def test_a_replay_sees_new_images_amounts_and_seeds(norm: Norm, pretended: list[str]) -> None:
    loop = loop_of(norm, mean=MEAN, std=STD, out_dtype=torch.bfloat16)
    images, goals = IMAGES.clone(), GOALS.clone()
    captured = loop.capture(images, goals, step_size=0.02, epsilon=0.1)
    images.zero_()  # the capture has its own copy
    for batch, labels, radius, seed in ((IMAGES, GOALS, 0.1, 0), (1 - IMAGES, GOALS.flip(0), 0.2, 9)):
        found = captured(batch, labels, step_size=radius / 5, epsilon=radius, seed=seed)
        wanted = loop(batch, labels, step_size=radius / 5, epsilon=radius, seed=torch.tensor(seed))
        assert torch.equal(found, wanted)
    assert pretended == ["captured", "replayed", "replayed"]


def test_a_result_stays_when_the_graph_is_replayed_and_the_seed_goes_on(pretended: list[str]) -> None:
    loop = loop_of("Linf", steps=1)
    captured = loop.capture(IMAGES, GOALS, step_size=0.001, epsilon=0.1, seed=4)
    first = captured(IMAGES, GOALS, seed=4)
    kept = first.clone()
    second = captured(IMAGES, GOALS)
    assert torch.equal(first, kept)
    assert torch.equal(second, loop(IMAGES, GOALS, step_size=0.001, epsilon=0.1, seed=torch.tensor(5)))


def test_an_amount_an_image_is_captured_as_such(pretended: list[str]) -> None:
    loop = loop_of("L2")
    captured = loop.capture(IMAGES, GOALS, step_size=0.1, epsilon=torch.full((4,), 0.1))
    radii = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = captured(IMAGES, GOALS, epsilon=radii, seed=0)
    assert torch.equal(found, loop(IMAGES, GOALS, step_size=0.1, epsilon=radii, seed=torch.tensor(0)))
    with pytest.raises(ValueError, match=r"captured for epsilon of shape \(4,\), got \(\)"):
        captured(IMAGES, GOALS, epsilon=torch.tensor(0.1))


@pytest.mark.parametrize(
    ("images", "goals", "message"),
    [
        (IMAGES[:3], GOALS, r"captured for images of shape \(4, 3, 5, 5\).*got \(3, 3, 5, 5\)"),
        (IMAGES.double(), GOALS, "captured for images .*got .*float64"),
        (IMAGES, GOALS[:3], "captured for goals"),
    ],
)
def test_a_batch_of_another_kind_is_refused(
    images: Tensor, goals: Tensor, message: str, pretended: list[str]
) -> None:
    captured = loop_of("Linf").capture(IMAGES, GOALS, step_size=0.1, epsilon=0.1)
    with pytest.raises(ValueError, match=message):
        captured(images, goals)
    assert "replayed" not in pretended


def test_images_on_the_cpu_cannot_be_captured() -> None:
    with pytest.raises(ValueError, match="needs images on a CUDA device, got cpu"):
        loop_of("Linf").capture(IMAGES, GOALS, step_size=0.1, epsilon=0.1)


class OnCuda:
    """What the refusals look at, of a tensor on a GPU."""

    is_cuda = True
    device = "cuda:0"

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def test_an_empty_batch_or_a_second_capture_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = OnCuda(0, 3, 4, 4)
    something: Any = OnCuda(2, 3, 4, 4)
    with pytest.raises(ValueError, match="at least one image"):
        graphs.check_capturable(nothing)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="being captured already"):
        graphs.check_capturable(something)
