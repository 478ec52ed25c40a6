"""The self-test says what is wrong, and says that a GPU is missing."""

import pytest

from paretune.commands.cli import main
from paretune.selftest import checks as module
from paretune.selftest.checks import report, selftest
from paretune.selftest.comparing import Check
from tests.kernels.simulator import require_tools


@pytest.mark.slow
def test_all_checks_that_need_no_gpu_pass_here() -> None:
    require_tools()
    checks = selftest()
    assert [check for check in checks if check.passed is False] == []
    assert sum(check.name.startswith("compilation for sm_") for check in checks) == 7


def test_a_missing_gpu_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--gpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err
        == "paretune: error: no CUDA device is available; run `paretune selftest` without --gpu\n"
    )


def test_a_failure_is_printed_and_gives_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(norm: str) -> tuple[bool, str]:
        return False, "other words"

    def broken(architecture: str) -> tuple[bool, str]:
        raise RuntimeError("no  such\narchitecture")

    monkeypatch.setattr(module, "_threat", wrong)
    monkeypatch.setattr(module, "_compilation", broken)
    monkeypatch.setattr(module, "ARCHITECTURES", ("sm_90",))
    monkeypatch.setattr(module.nvrtc, "missing", lambda: None)
    assert main(["selftest"]) == 2
    captured = capsys.readouterr()
    assert "FAIL  Linf step in plain PyTorch" in captured.out
    assert "RuntimeError: no such architecture" in captured.out
    assert "3 of 3 checks failed" in captured.out
    assert "self-test failed" in captured.err


def test_a_report_counts_what_was_judged_only() -> None:
    checks = [Check("torch", None, "2.9"), Check("a longer name", True, "fine"), Check("time", None)]
    assert report(checks).splitlines() == [
        "      torch          2.9",
        "pass  a longer name  fine",
        "      time",
        "all 1 checks passed",
    ]
