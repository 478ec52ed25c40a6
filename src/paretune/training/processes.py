"""The processes that train one model together, of which there is one unless a launcher starts more."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from paretune.attacks import Attack, AttackCopy
from paretune.attacks.masking import vanishing_gradients
from paretune.backbones.backbone import Backbone
from paretune.data.image_split import ImageSplit
from paretune.evaluation.correctness import Seen, evaluate
from paretune.evaluation.scores import Bits, Scores
from paretune.training.memory import EVALUATED
from paretune.training.precision import MixedPrecision

log = logging.getLogger(__name__)  # which the command line shows under a launcher

T = TypeVar("T")

_LOOKED_AT = 128  # images whose gradients an evaluation point looks at


class Processes:
    """What the loop does with all of its processes, through accelerate's ``accelerator``.

    Args:
        batch_sizes: images a step of each task, over all processes.
        mixed_precision: of training; of float16, gradients are scaled.
        evaluated: images that are measured at once.

    Raises:
        ValueError: the processes cannot share a batch evenly.
    """

    def __init__(
        self, batch_sizes: Sequence[int], mixed_precision: str = "no", *, evaluated: int = EVALUATED
    ) -> None:
        self.evaluated = evaluated
        # Without cpu=True, accelerate leaves the processes of torchrun each alone where there is no accelerator.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.precision = MixedPrecision(self.device, mixed_precision)
        for batch_size in batch_sizes:
            if batch_size % self.world:
                raise ValueError(f"batch_size={batch_size} must be a multiple of the {self.world} processes")

    def announce(self, path: Path) -> None:
        """Log which processes there are."""
        log.info("%s: process %d of %d", path, self.rank + 1, self.world)
        if self.world == 1 and "MASTER_ADDR" in os.environ:
            log.warning(
                "%s: one process alone, although a launcher is about; to train on a CPU with N processes, use "
                "torchrun --nproc-per-node N",
                path,
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is called in training, on its device."""
        wrapped: nn.Module = self.accelerator.prepare(model)
        # What accelerate does for the mixed precision that a launcher names: here only losses are computed so.
        for name in ("forward", "_original_forward"):
            model.__dict__.pop(name, None)
        if self.world > 1:  # what each process sees counts, see equalise_buffers; no step is to overwrite it
            wrapped.broadcast_buffers = False  # type: ignore[assignment]
        return wrapped

    def on_main(self, do: Callable[[], T]) -> T | None:
        """Let the main process ``do``, the others wait; what it raises, all raise."""
        answer, error = None, None
        if self.accelerator.is_main_process:
            try:
                answer = do()
            except Exception as raised:
                error = raised
        (error,) = broadcast_object_list([error])
        if error is not None:
            raise error
        return answer

    def equalise_buffers(self, model: Backbone) -> None:
        """Where the buffers of the processes differ, take their mean, of whole numbers the main process's."""
        if self.world == 1:
            return
        for buffer in model.module.buffers():
            values = self.accelerator.gather(buffer.detach().contiguous().view(1, -1))  # (processes, numbers)
            differ = (values != values[0]).any(0)  # the others keep exactly what they are
            if differ.any():
                mean = values.double().mean(0).to(buffer.dtype) if buffer.is_floating_point() else values[0]
                with torch.no_grad():
                    buffer.copy_(torch.where(differ, mean, values[0]).view_as(buffer))

    def evaluate(
        self,
        model: Backbone,
        split: ImageSplit,
        attacks: Sequence[Attack],
        seed: int,
        victim: AttackCopy | None = None,
        seen: Seen | None = None,
    ) -> Scores:
        """:func:`~paretune.evaluate`, of which each process does its share; ``seen`` sees that alone."""
        shard = (self.rank, self.world)
        scores = evaluate(
            model,
            split,
            attacks,
            batch_size=self.evaluated,
            seed=seed,
            shard=shard,
            victim=victim,
            seen=seen,
        )

        def add_up(bits: Bits) -> Bits:
            return self.total(torch.from_numpy(bits.astype(np.int32))).numpy().astype(bool)

        robust = {attack: add_up(bits) for attack, bits in scores.robust.items()}
        return replace(scores, clean=add_up(scores.clean), robust=robust)

    def vanishing_gradients(self, victim: AttackCopy, split: ImageSplit, seed: int) -> tuple[int, int]:
        """:func:`~paretune.attacks.masking.vanishing_gradients` of the first images of ``split``, each process its share."""
        rows = torch.arange(self.rank, min(len(split), _LOOKED_AT), self.world)
        images, labels = (part.to(victim.device) for part in split[rows])
        zero, seen = self.total(torch.tensor(vanishing_gradients(victim, images, labels, seed=seed))).tolist()
        return zero, seen

    def mean(self, here: float) -> float:
        """The mean over all processes."""
        mean: float = self.total(torch.tensor(here)).item() / self.world
        return mean

    def total(self, here: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the CPU."""
        if self.world == 1:
            return here
        summed: torch.Tensor = self.accelerator.reduce(here.to(self.accelerator.device), "sum")
        return summed.cpu()
