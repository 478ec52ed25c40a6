"""A run for which memory does not suffice is the same run in more parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import paretune as pt
from paretune.runs.rows import read_json
from paretune.sweeps.grid import directory_name
from paretune.training import loop
from paretune.training.memory import fitting, is_out_of_memory
from tests.unit.commands.test_cli import weights  # noqa: F401  # a fixture
from tests.unit.training.test_points import small


def ending(monkeypatch: pytest.MonkeyPatch, most: int, *, after: int = 0) -> list[int]:
    """Memory for parts of ``most`` images, once ``after`` steps are taken; returns the largest part of each step."""
    sizes: list[int] = []
    gradients = loop.gradients

    def measured(parts: Any, *args: Any, **options: Any) -> Any:
        size = max(len(part.labels) for part in parts)
        if size > most and len(sizes) >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(size)
        return gradients(parts, *args, **options)

    monkeypatch.setattr(loop, "gradients", measured)
    return sizes


def findings(path: Path) -> list[str]:
    return [noted["finding"] for noted in read_json(path / "DONE")["findings"]]


def test_the_run_is_that_in_as_many_parts_and_keeps_its_key(
    tmp_path: Path,
    weights: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small(weights, points=2)
    (in_parts,) = small(weights, points=2, accumulate=4).run(tmp_path / "parts", progress=False)
    sizes = ending(monkeypatch, 4)
    (run,) = config.run(tmp_path / directory_name(config), progress=False)
    assert sizes == [4] * 4
    assert run.done
    assert run.config["accumulate"] == 1
    measured = ["step", "clean", "robust", "clean_select", "robust_select"]
    assert run.points[measured].equals(in_parts.points[measured])
    (finding,) = (text for text in findings(run.path) if text.startswith("out of memory"))
    assert finding == (
        "out of memory: after step 0 each batch is learnt in 4 parts instead of 1, and 32 images are measured at once; the "
        "gradient is that of the whole batch up to rounding"
    )
    assert run.key == config.run(run.path, progress=False)[0].key  # finished, and found again


def test_it_goes_on_from_its_last_point(
    tmp_path: Path,
    weights: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ending(monkeypatch, 8, after=3)
    (run,) = small(weights, points=2).run(tmp_path / "run", progress=False, resume=False)
    assert sizes == [16, 16, 16, 8, 8]  # three, of which the first two are kept
    assert [*run.points["step"]] == [2, 4]
    assert any("after step 2 each batch is learnt in 2 parts" in text for text in findings(run.path))


def test_where_batch_norms_adapt_the_finding_says_what_it_is_to_be_compared_with(
    tmp_path: Path,
    weights: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending(monkeypatch, 8)
    (run,) = small(weights, points=1, strategy=pt.FullFineTune(bn="adapt")).run(
        tmp_path / "run", progress=False
    )
    assert any(
        "batch norms adapt to each part, so the run is one with accumulate=2: compare it with such" in text
        for text in findings(run.path)
    )


def test_a_batch_that_cannot_be_divided_further_raises_what_memory_said(
    tmp_path: Path,
    weights: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        small(weights, points=1).run(tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
            ),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_has_ended(error: Exception, ended: bool) -> None:
    assert is_out_of_memory(error) == ended


def raising(errors: list[Exception]) -> Callable[[int], int]:
    def run(divide: int) -> int:
        if errors:
            raise errors.pop(0)
        return divide

    return run


def test_only_the_end_of_memory_of_one_process_alone_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitting(raising([MemoryError(), MemoryError()]), 4) == 4
    with pytest.raises(MemoryError):
        fitting(raising([MemoryError(), MemoryError()]), 2)
    with pytest.raises(RuntimeError, match="other"):
        fitting(raising([RuntimeError("other")]), 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MemoryError):
        fitting(raising([MemoryError()]), 4)
