"""``paretune selftest``: the attack kernels on this machine."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Selftest:
    """Check the attack kernels on this machine and print a report to paste into an issue.

    Args:
        gpu: also run them on the GPU, compare with plain PyTorch, and time them.
    """

    gpu: bool = False

    def __call__(self) -> None:
        """Run the checks and print one line each."""
        from paretune.selftest.checks import report, selftest

        checks = selftest(gpu=self.gpu)
        print(report(checks))
        if any(check.passed is False for check in checks):
            raise RuntimeError("the self-test failed; please open an issue with the lines above")
