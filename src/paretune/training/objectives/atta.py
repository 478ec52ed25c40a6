"""Adversarial training that remembers: each attack goes on from where the last one on the same image has ended."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor, nn

from paretune._values import check_whole
from paretune.attacks import PGD
from paretune.backbones.backbone import Backbone
from paretune.data.augmentation import Chain
from paretune.data.images import ImageData
from paretune.training.objectives.adversarial import AdversarialTraining
from paretune.training.objectives.base import Copies, Term, TrainingBatch


@dataclass(frozen=True)
class ATTA(AdversarialTraining):
    """Adversarial training with perturbations that are carried over epochs (Zheng et al. 2020, "Efficient Adversarial
    Training with Transferable Adversarial Examples", https://arxiv.org/abs/1912.11969, algorithm 1).

    The perturbation of each training image is kept in units of the epsilon of its step, so that a schedule of epsilon scales
    it, and in the frame of the image before augmentation: flips and crops carry it along, and what a crop cuts off stays as
    it was. An image without one starts as the attack does. The memory takes 2 bytes a value, 0.3 MB for an image of 224 by
    224 pixels, and is a part of checkpoints.

    On the demo (``benchmarks/memory.csv``: LoRA, 5 epochs, three seeds) two steps with a memory reach what PGD reaches with
    three, and one step with a memory no more than PGD with one.

    Args:
        inner: a :class:`~paretune.PGD` of few steps. Without a ``step_size`` its steps are half of epsilon, as in the
            paper's ATTA-1: longer ones leave nothing of where they start.
        label_smoothing: as of :class:`AdversarialTraining`.
        reset: epochs after which what is remembered is forgotten (10 in the paper).

    Raises:
        ValueError: ``inner`` is no PGD, or ``reset`` is no whole number from 1 on.
    """

    _: KW_ONLY
    reset: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("reset", self.reset, 1)
        if self.inner is None:
            return
        if not isinstance(self.inner, PGD) or self.inner.momentum:
            raise ValueError(
                f"ATTA: inner must be a PGD without momentum, which can start anywhere; got {self.inner!r}"
            )
        if self.inner.step_size is None:
            object.__setattr__(self, "inner", replace(self.inner, step_size=self.inner.threat.epsilon / 2))

    def check_augmentation(self, augmentation: Chain) -> None:
        """Refuse what moves pixels otherwise than one by one."""
        blank = torch.zeros(1, 3, 32, 32)
        if augmentation.place(blank, [0]) is None:
            raise ValueError(
                f"ATTA cannot carry perturbations through {augmentation!r}, which resamples pixels; use flip, crop and what "
                "changes colours, or another objective"
            )

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With an empty memory."""
        return _Memory(self, data.train.ids, next(model.parameters()).device)


class _Memory(Term):
    """Of each example of the train split: its perturbation over epsilon, and the epoch in which that was found."""

    def __init__(self, objective: ATTA, ids: Tensor, device: torch.device) -> None:
        self.objective, self.device = objective, device
        self.ids, self.rows = ids.sort()
        self.epochs = torch.full((len(ids),), -1, dtype=torch.int32)
        self.kept: Tensor | None = None  # once the first batch has shown the shape

    def attacked(self, copy: Copies, batch: TrainingBatch) -> Tensor:
        if batch.epsilon == 0:
            return batch.images
        assert batch.train is not None
        assert isinstance(self.objective.inner, PGD)
        if self.kept is None:
            self.kept = batch.images.new_zeros(len(self.ids), *batch.images.shape[1:], dtype=torch.float16)
        rows = self.rows[torch.searchsorted(self.ids, batch.ids)]
        forgotten = self.epochs[rows] < batch.epoch // self.objective.reset * self.objective.reset
        before = self.kept[rows.to(self.kept.device)].float()
        placed = batch.train.place(before, batch.epoch, batch.ids)
        assert placed is not None
        start = batch.images + batch.epsilon * placed
        start[forgotten.to(start.device)] = float("nan")
        images_adv = batch.attack(self.objective.inner, copy, start=start)
        after = (images_adv - batch.images) / batch.epsilon
        unplaced, seen = (
            batch.train.unplace(pixels, batch.epoch, batch.ids) for pixels in (after, torch.ones_like(after))
        )
        assert unplaced is not None
        assert seen is not None
        now = torch.where(seen > 0, unplaced, before)
        if (
            PartialState().num_processes > 1
        ):  # all remember all examples, because each gets others in the next epoch
            rows, now = gather(rows.to(now.device)).cpu(), gather(now)
        last = {row: number for number, row in enumerate(rows.tolist())}  # sampling may draw an example twice
        rows, numbers = torch.tensor([*last]), torch.tensor([*last.values()])
        self.kept[rows.to(now.device)] = now[numbers.to(now.device)].half()
        self.epochs[rows] = batch.epoch
        return images_adv

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        return self.objective.loss(model, batch, attacked)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.kept is None else {"kept": self.kept, "epochs": self.epochs}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if "kept" in tensors:
            self.kept, self.epochs = tensors["kept"].to(self.device), tensors["epochs"]
