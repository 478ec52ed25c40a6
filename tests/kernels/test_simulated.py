"""The CUDA source, run on the CPU one fiber a thread, computes what plain PyTorch computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.kernels import Norm, Step, launch, reference
from paretune.selftest.comparing import (
    NORMS,
    SHAPES,
    Check,
    cases,
    compare,
    compare_all,
    step_checks,
    within_rule,
)
from tests.kernels.simulator import Simulator, simulated_step

CPU = torch.device("cpu")


def assert_passed(checks: list[Check]) -> None:
    assert checks
    assert not [check for check in checks if check.passed is not True]


def test_each_step_is_that_of_plain_pytorch(simulator: Simulator) -> None:
    assert_passed(list(step_checks(simulated_step(simulator), CPU)))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_threads_and_blocks_does_not_matter(
    simulator: Simulator, norm: Norm, order: int
) -> None:
    simulator.schedule(order)
    try:
        for shape in SHAPES:
            _, step = next(cases(norm, shape))
            passed, detail = compare(simulated_step(simulator), step)
            assert passed, detail
    finally:
        simulator.schedule(0)


@given(
    batch=st.integers(1, 3),
    size=st.integers(1, 1100),
    seed=st.integers(0, 2**32 - 1),
    norm=st.sampled_from(NORMS),
    shift=st.integers(0, 4),
)
@settings(max_examples=40)
def test_every_number_of_odd_sizes_and_offsets_is_written_once(
    simulator: Simulator, batch: int, size: int, seed: int, norm: Norm, shift: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def shifted(numbers: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros(shift), numbers.flatten()])[shift:].view(batch, size)

    images = shifted(torch.rand(batch, size, generator=generator))
    gradient = shifted(torch.randn(batch, size, generator=generator))
    passed, detail = compare(simulated_step(simulator), Step(gradient, images, images, norm, 0.1, 0.07))
    assert passed, detail


def test_l2_of_a_large_image_takes_two_launches_and_of_a_small_one_or_a_full_gpu_one(
    simulator: Simulator,
) -> None:
    taken = {}
    for name, shape in {"small": (1, 3, 16, 16), "large": (1, 3, 74, 75), "full": (2, 3, 74, 75)}.items():
        images = torch.full(shape, 0.5)
        simulated_step(simulator)(Step(torch.ones(shape), images, images, "L2", 1.0, 1.0))
        taken[name] = [each.kernel.partition("<")[0] for each in simulator.launched]
    assert taken == {
        "small": ["paretune::l2_step"],
        "large": ["paretune::l2_sums", "paretune::l2_move"],
        "full": ["paretune::l2_step"],
    }


def test_the_whole_tail_of_an_linf_step_is_one_launch(simulator: Simulator) -> None:
    images = torch.rand(2, 3, 16, 16)
    gradient, mean, std = (
        torch.randn_like(images).bfloat16(),
        torch.full((3,), 0.5),
        torch.full((3,), 0.25),
    )
    simulated_step(simulator)(Step(gradient, images, images, "Linf", 0.01, 0.03, mean, std, torch.bfloat16))
    (only,) = simulator.launched
    assert only.kernel == "paretune::linf_step<__nv_bfloat16,__nv_bfloat16,true,4>"


@pytest.mark.parametrize("norm", NORMS)
def test_a_cut_into_more_blocks_changes_no_result_beyond_the_rule(simulator: Simulator, norm: Norm) -> None:
    before = simulator.count
    try:
        for processors in (1, 8, 100):
            simulator.count = processors
            _, step = next(cases(norm, (2, 3, 74, 75)))
            passed, detail = compare(simulated_step(simulator), step)
            assert passed, f"{processors} processors: {detail}"
    finally:
        simulator.count = before


def test_l2_has_the_direction_of_gradients_whose_square_no_float32_holds(simulator: Simulator) -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    direction = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    for scale in (1e-44, 1e-38, 1e-30, 1.0, 1e30, 8e37):
        moved, _ = simulated_step(simulator)(Step(direction * scale, images, images, "L2", 0.05, 1.0))
        lost = 0.1 if scale == 1e-44 else 1e-6  # 3e-44 has five bits
        assert torch.allclose(moved - images, 0.01 * direction, rtol=lost, atol=1e-7), scale


def test_an_amount_is_read_from_memory_so_that_a_replay_sees_a_new_one(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_amount", lambda amount: launch.Amount(amount.data_ptr(), 0.0))
    images, amount = torch.full((1, 8), 0.5), torch.tensor(0.1)
    step = Step(torch.ones(1, 8), images, images, "Linf", amount, amount)
    moved, _ = launch.launch_step(step, simulator)
    assert torch.equal(moved, reference.pgd_step(step)[0])
    amount.fill_(0.2)
    again, _ = launch.launch_step(step, simulator)
    assert torch.equal(again, torch.full((1, 8), 0.7))
    assert not torch.equal(again, moved)


@given(divisor=st.integers(1, 2**31 - 1), number=st.integers(0, 2**31 - 1))
def test_the_multiplication_that_replaces_a_division_is_exact(divisor: int, number: int) -> None:
    channels = launch.channels_of(torch.empty(1, 1, divisor, device="meta"), None, None)
    assert channels.magic < 2**32
    assert number * channels.magic >> channels.shift == number // divisor


def test_the_rule_allows_twice_the_error_of_plain_pytorch_and_no_more() -> None:
    truth = torch.zeros(2, dtype=torch.float64)
    plain = torch.tensor([1e-3, 0.0])
    assert within_rule(torch.tensor([0.0, 1.9e-3]), plain, truth)[0]
    assert not within_rule(torch.tensor([0.0, 2.1e-3]), plain, truth)[0]


def test_a_comparison_sees_a_single_wrong_number() -> None:
    def wrong(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        moved, _ = reference.pgd_step(step)
        moved.view(-1)[-1] += 1e-4
        return moved, moved

    for norm in NORMS:
        passed, _ = compare_all(wrong, CPU, norm, SHAPES[0])
        assert passed is False


@pytest.mark.slow
def test_every_combination_of_types_is_that_of_plain_pytorch(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    combinations = [(g, y, n) for g in dtypes for y in (None, *dtypes) for n in (False, True) if y or not n]
    kernels = {name for g, y, n in combinations for name in launch.step_program(g, y, normalise=n)}
    simulator = Simulator(tmp_path_factory.mktemp("all"), sorted(kernels))
    images = torch.rand(2, 3, 9, 12)
    images_adv = (images + 0.02 * torch.randn_like(images)).clamp(0, 1)
    mean, std = torch.full((3,), 0.4), torch.full((3,), 0.3)
    for gradient, out_dtype, normalise in combinations:
        for norm in NORMS:
            step = Step(
                torch.randn_like(images).to(gradient),
                *(images, images_adv, norm, 0.2, 0.1),
                *((mean, std) if normalise else (None, None)),
                out_dtype,
            )
            passed, detail = compare(simulated_step(simulator), step)
            assert passed, f"{norm} {gradient} {out_dtype}: {detail}"
