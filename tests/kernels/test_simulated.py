"""The CUDA source, run on the CPU one fiber a thread, computes what plain PyTorch computes."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.kernels import launch, pgd_step, reference
from paretune.kernels.reference import Norm
from paretune.selftest.checks import PHILOX_ANSWERS
from paretune.selftest.comparing import (
    NORMS,
    SHAPES,
    Check,
    cases,
    compare,
    compare_all,
    start_checks,
    step_checks,
    within_rule,
)
from tests.kernels.simulator import Simulator, simulated_start, simulated_step

CPU = torch.device("cpu")


def assert_passed(checks: list[Check]) -> None:
    assert checks
    assert not [check for check in checks if check.passed is not True]


def test_each_step_is_that_of_plain_pytorch(simulator: Simulator) -> None:
    assert_passed(list(step_checks(simulated_step(simulator), CPU)))


def test_each_random_start_is_that_of_plain_pytorch(simulator: Simulator) -> None:
    assert_passed(list(start_checks(simulated_start(simulator), CPU)))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_threads_and_blocks_does_not_matter(
    simulator: Simulator, norm: Norm, order: int
) -> None:
    simulator.schedule(order)
    try:
        for shape in SHAPES:
            _, arguments = next(cases(norm, shape))
            passed, detail = compare(simulated_step(simulator), arguments)
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
    arguments = {"gradient": gradient, "images": images, "images_adv": images}
    passed, detail = compare(
        simulated_step(simulator), arguments | {"norm": norm, "step_size": 0.1, "epsilon": 0.07}
    )
    assert passed, detail


def test_l2_of_a_large_image_takes_two_launches_and_of_a_small_one_or_a_full_gpu_one(
    simulator: Simulator,
) -> None:
    step = simulated_step(simulator)
    taken = {}
    for name, shape in {"small": (1, 3, 16, 16), "large": (1, 3, 74, 75), "full": (2, 3, 74, 75)}.items():
        images = torch.full(shape, 0.5)
        step(torch.ones(shape), images, images, norm="L2", step_size=1.0, epsilon=1.0)
        taken[name] = [each.kernel.partition("<")[0] for each in simulator.launched]
    assert taken == {
        "small": ["paretune::l2_step"],
        "large": ["paretune::l2_sums", "paretune::l2_move"],
        "full": ["paretune::l2_step"],
    }


def test_the_whole_tail_of_an_linf_step_is_one_launch(simulator: Simulator) -> None:
    images = torch.rand(2, 3, 16, 16)
    simulated_step(simulator)(
        torch.randn_like(images).bfloat16(),
        images,
        images,
        norm="Linf",
        step_size=0.01,
        epsilon=0.03,
        mean=torch.full((3,), 0.5),
        std=torch.full((3,), 0.25),
        out_dtype=torch.bfloat16,
    )
    (only,) = simulator.launched
    assert only.kernel == "paretune::linf_step<__nv_bfloat16,__nv_bfloat16,true,4>"


@pytest.mark.parametrize("norm", NORMS)
def test_a_cut_into_more_blocks_changes_no_result_beyond_the_rule(simulator: Simulator, norm: Norm) -> None:
    before = simulator.count
    try:
        for processors in (1, 8, 100):
            simulator.count = processors
            _, arguments = next(cases(norm, (2, 3, 74, 75)))
            passed, detail = compare(simulated_step(simulator), arguments)
            assert passed, f"{processors} processors: {detail}"
    finally:
        simulator.count = before


def test_l2_has_the_direction_of_gradients_whose_square_no_float32_holds(simulator: Simulator) -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    direction = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    for scale in (1e-44, 1e-38, 1e-30, 1.0, 1e30, 8e37):
        moved, _ = simulated_step(simulator)(
            direction * scale, images, images, norm="L2", step_size=0.05, epsilon=1.0
        )
        lost = 0.1 if scale == 1e-44 else 1e-6  # 3e-44 has five bits
        assert torch.allclose(moved - images, 0.01 * direction, rtol=lost, atol=1e-7), scale


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX_ANSWERS)
def test_philox_gives_the_published_words(
    simulator: Simulator, counter: tuple[int, ...], key: int, words: tuple[int, ...]
) -> None:
    found = (ctypes.c_uint32 * 4)()
    simulator.library.philox((ctypes.c_uint32 * 4)(*counter), ctypes.c_uint64(key), found)
    assert tuple(found) == words


def test_the_seed_is_read_from_memory_so_that_a_replay_sees_a_new_one(simulator: Simulator) -> None:
    seed = torch.tensor(3)
    argument = launch.Seed(seed.data_ptr(), 0)
    images, out = torch.full((1, 8), 0.5), torch.empty(1, 8)
    call = launch.Launch(
        "paretune::linf_start",
        launch.START_PROGRAM,
        1,
        32,
        (
            ctypes.c_void_p(images.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            launch.Batch(8, 1),
            launch.channels_of(images, None, None),
            argument,
            launch.Amount(None, 0.1, 0),
        ),
    )
    for value in (3, 4):
        seed.fill_(value)
        simulator.run([call], CPU)
        assert torch.equal(out, reference.linf_start(images, 0.1, torch.tensor(value)))


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
    def wrong(**arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        moved, _ = pgd_step(**arguments)  # type: ignore[arg-type]
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
    tensors = {"images": images, "images_adv": (images + 0.02 * torch.randn_like(images)).clamp(0, 1)}
    for gradient, out_dtype, normalise in combinations:
        for norm in NORMS:
            extra = {"mean": torch.full((3,), 0.4), "std": torch.full((3,), 0.3)} if normalise else {}
            arguments = tensors | extra | {"gradient": torch.randn_like(images).to(gradient), "norm": norm}
            if out_dtype not in (None, torch.float32) or normalise:
                arguments |= {"out_dtype": out_dtype}
            passed, detail = compare(
                simulated_step(simulator), arguments | {"step_size": 0.2, "epsilon": 0.1}
            )
            assert passed, f"{norm} {gradient} {out_dtype}: {detail}"
