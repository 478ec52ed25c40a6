"""The adversarial examples of one evaluation point, which the next one tries first."""

from collections.abc import Mapping

from torch import Tensor

from paretune.evaluation.reuse import Candidates


class Replays:
    """The candidates of each split of a task, as its checkpoints keep them; there are none unless the run reuses them.

    Args:
        reuse: whether it does.
    """

    def __init__(self, *, reuse: bool) -> None:
        self._reuse = reuse
        self._of: dict[str, Candidates] = {}

    def of(self, split: str) -> Candidates | None:
        """Those of a split, by a name without a slash."""
        return self._of.setdefault(split, Candidates()) if self._reuse else None

    def tensors(self) -> Mapping[str, Tensor]:
        """By the names of the splits."""
        return {
            f"{split}/{name}": tensor
            for split, candidates in self._of.items()
            for name, tensor in candidates.tensors().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` has given."""
        of: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            split, _, name = key.partition("/")
            of.setdefault(split, {})[name] = tensor
        self._of = {}
        for split, kept in of.items():
            self._of[split] = Candidates()
            self._of[split].load(kept)
