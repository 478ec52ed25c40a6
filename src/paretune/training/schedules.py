"""How the strength of the attack changes while training."""

from dataclasses import KW_ONLY, dataclass

from paretune._values import Value


@dataclass(frozen=True)
class EpsilonSchedule(Value):
    """Factor on epsilon over training: 0 until ``start``, linear to ``end``, then 1.

    Epsilon-Scheduling of Ngnawe et al. 2026 (https://arxiv.org/abs/2509.23325, equation 3), with
    T1 = ``start`` and T2 = ``end`` as fractions of training, step by step instead of epoch by epoch. Attacking at full
    epsilon from the first step can keep a pretrained backbone from learning the task at all.

    Args:
        start: T1, fraction of training without attack, in [0, 1].
        end: T2, fraction of training from which on the attack is at full strength, in [start, 1].
    """

    _: KW_ONLY
    start: float = 0.25
    end: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"need 0 <= start <= end <= 1 as fractions of training, got start={self.start}, end={self.end}"
            )

    @classmethod
    def fixed(cls) -> "EpsilonSchedule":
        """Full epsilon from the first step."""
        return cls(start=0.0, end=0.0)

    @classmethod
    def linear(cls, end: float = 1.0) -> "EpsilonSchedule":
        """Linear warm-up from the first step to ``end``."""
        return cls(start=0.0, end=end)

    @classmethod
    def two_hinge(cls, start: float = 0.25, end: float = 0.75) -> "EpsilonSchedule":
        """The paper's schedule. Its ablation (Swin-B, Stanford Cars) has (0.24, 0.6) slightly ahead."""
        return cls(start=start, end=end)

    def factor(self, progress: float) -> float:
        """Factor on epsilon when the fraction ``progress`` of training is done."""
        if progress >= self.end:
            return 1.0
        if progress <= self.start:
            return 0.0
        return (progress - self.start) / (self.end - self.start)
