"""The source compiles for every architecture, to machine code without spills and with wide memory accesses."""

import ctypes
import importlib
import logging
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from paretune.kernels import Step, nvrtc
from paretune.kernels.launch import Launch, step_program
from paretune.selftest.checks import ARCHITECTURES
from paretune.selftest.comparing import NORMS
from tests.kernels.simulator import Simulator, require_tools, simulated_step

HALF = step_program(torch.bfloat16, torch.bfloat16, normalise=True)
LINF, L2 = PROGRAM = HALF[:2]


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tools()


def disassemble(image: bytes, directory: Path) -> dict[str, str]:
    """Machine code by kernel symbol; the disassembler comes with triton, which torch depends on."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = directory / "kernels.cubin"
    cubin.write_bytes(image)
    text = subprocess.run(
        [tools / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"^//-+ \.text\.(\S+).*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def assert_tight(names: tuple[str, ...], arch: str, directory: Path) -> None:
    """No kernel touches local memory, where spills go, and vectorised ones load and store 16 bytes at once."""
    program = nvrtc.compile_program(names, arch)
    code = disassemble(program.image, directory)
    assert set(program.symbols.values()) <= set(code)
    for name, symbol in program.symbols.items():
        instructions = set(re.findall(r"\b(?:LD|ST)[GL][.A-Z0-9]*", code[symbol]))
        assert instructions, name
        assert not [each for each in instructions if each.startswith(("LDL", "STL"))], name
        if name.endswith(",4>"):
            assert [each for each in instructions if each.startswith("LDG") and ".128" in each], name
            stores_images = "l2_sums" not in name
            assert stores_images == bool(
                [each for each in instructions if each.startswith("STG") and ".128" in each]
            ), name


@pytest.mark.some(3)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_machine_code_has_no_spills_and_128_bit_accesses(arch: str, tmp_path: Path) -> None:
    assert_tight((LINF, L2), arch, tmp_path)


@pytest.mark.some(2)
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_vectorised_kernel_has_no_spills_and_128_bit_accesses(arch: str, tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    names = {
        name
        for gradient in dtypes
        for out_dtype in (None, *dtypes)
        for normalise in (False, True)
        if out_dtype is not None or not normalise
        for name in step_program(gradient, out_dtype, normalise=normalise)
        if name.endswith(",4>")
    }
    assert_tight(tuple(sorted(names)), arch, tmp_path)


def launches(simulator: Simulator) -> Iterator[Launch]:
    """One of each kernel."""
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    for shape in ((1, 3, 16, 16), (1, 3, 74, 75)):
        images = torch.full(shape, 0.5)
        for norm in NORMS:
            step = Step(images.bfloat16(), images, images, norm, 0.1, 0.1, mean, std, torch.bfloat16)
            simulated_step(simulator)(step)
            yield from simulator.launched


def test_packed_parameters_are_those_that_the_compiled_kernels_declare(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = importlib.import_module("cuda.bindings.nvrtc")  # which is to give PTX, a text that declares them
    monkeypatch.setattr(api, "nvrtcGetCUBINSize", api.nvrtcGetPTXSize)
    monkeypatch.setattr(api, "nvrtcGetCUBIN", api.nvrtcGetPTX)
    packed = {each.kernel: each for each in launches(simulator)}
    names = {kernel.partition("<")[0].removeprefix("paretune::") for kernel in packed}
    assert names == {"linf_step", "l2_step", "l2_sums", "l2_move"}
    for kernel, launch in packed.items():
        program = nvrtc.compile_program([kernel], "compute_75", cache=False)
        text = program.image.decode()
        (declared,) = re.findall(
            rf"\.entry {re.escape(program.symbols[kernel])}\((.*?)\)", text, flags=re.DOTALL
        )
        sizes = []
        for parameter in declared.split(","):
            array = re.search(r"\.b8 [^\[]*\[(\d+)\]", parameter)
            scalar = re.search(r"\.param \.[a-z](\d+)", parameter)
            assert array or scalar, parameter
            sizes.append(int(array[1]) if array else int(scalar[1]) // 8 if scalar else 0)
        assert sizes == [ctypes.sizeof(each) for each in launch.arguments], kernel


def entries() -> list[Path]:
    return sorted(nvrtc.cache_directory().glob("*.cubin"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Architectures that the compiler was called for."""
    called: list[str] = []
    original = nvrtc._compile

    def counting(source: str, names: list[str], options: list[str]) -> nvrtc.Program:
        called.append(options[0])
        return original(source, names, options)

    monkeypatch.setattr(nvrtc, "_compile", counting)
    return called


def test_a_program_is_compiled_once_and_read_back_whole(empty_cache: Path, compilations: list[str]) -> None:
    first = nvrtc.compile_program(PROGRAM, "sm_90")
    assert nvrtc.compile_program(PROGRAM, "sm_90") == first
    assert len(compilations) == len(entries()) == 1
    assert first.image.startswith(b"\x7fELF")


def test_another_source_architecture_or_kernel_is_another_program(
    empty_cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvrtc.compile_program(PROGRAM, "sm_90")
    nvrtc.compile_program(PROGRAM, "sm_80")
    nvrtc.compile_program(PROGRAM[:1], "sm_90")
    other = empty_cache / "pgd_step.cu"
    other.write_text(nvrtc.SOURCE.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(nvrtc, "SOURCE", other)
    nvrtc.compile_program(PROGRAM, "sm_90")
    assert len(compilations) == len(entries()) == 4


@pytest.mark.parametrize("damage", [b"", b"paretune kernels 1\n", None, b"another file\n" * 100])
def test_a_damaged_cache_entry_is_compiled_again(
    damage: bytes | None, empty_cache: Path, compilations: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = nvrtc.compile_program(PROGRAM, "sm_90")
    (entry,) = entries()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert nvrtc.compile_program(PROGRAM, "sm_90") == first
    assert "damaged" in caplog.text
    assert entry.read_bytes() == whole
    assert len(compilations) == 2


def test_many_threads_leave_one_whole_entry(empty_cache: Path) -> None:
    results: list[nvrtc.Program] = []
    threads = [
        threading.Thread(target=lambda: results.append(nvrtc.compile_program(PROGRAM[:1], "sm_90")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert results.count(results[0]) == 4
    assert [path.name for path in nvrtc.cache_directory().iterdir()] == [path.name for path in entries()]


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        program = nvrtc.compile_program(PROGRAM[:1], "sm_90")
    assert program.image.startswith(b"\x7fELF")
    assert "set PARETUNE_CACHE" in caplog.text


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert nvrtc.cache_directory() == Path("/a/kernels")
    monkeypatch.delenv("PARETUNE_CACHE")
    assert nvrtc.cache_directory() == Path("/b/paretune/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert nvrtc.cache_directory() == Path.home() / ".cache" / "paretune" / "kernels"


def test_a_source_that_does_not_compile_gives_the_compiler_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "SOURCE", tmp_path / "pgd_step.cu")
    nvrtc.SOURCE.write_text("nonsense")
    with pytest.raises(RuntimeError, match=r"(?s)does not compile.*nonsense"):
        nvrtc.compile_program(["paretune::f"], "sm_90", cache=False)


def test_without_nvrtc_the_reason_and_the_way_out_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(nvrtc.importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"NVRTC cannot be loaded .*pip install cuda-bindings"):
        nvrtc.compile_program(PROGRAM, "sm_90")
