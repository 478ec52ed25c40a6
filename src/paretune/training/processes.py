"""The processes that train one model together, of which there is one unless a launcher starts more."""

import atexit
import functools
import gc
import importlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from paretune.attacks import Attack, AttackCopy
from paretune.attacks.masking import vanishing_gradients
from paretune.backbones.backbone import Backbone
from paretune.data.image_split import ImageSplit
from paretune.evaluation.correctness import Seen, evaluate
from paretune.evaluation.reuse import Candidates
from paretune.evaluation.scores import Bits, Scores
from paretune.training.memory import EVALUATED
from paretune.training.plan import Plan
from paretune.training.precision import MixedPrecision
from paretune.training.sharding import sharded

log = logging.getLogger(__name__)  # which the command line shows under a launcher

T = TypeVar("T")

_PATIENCE = timedelta(
    weeks=1
)  # one share of a long attack may take hours longer than another; who fails ends the others
_MESSAGE = 2**24  # numbers that processes send each other at once, at least
_LOOKED_AT = 128  # images whose gradients an evaluation point looks at


class Processes:
    """What the loop does with all of its processes, through accelerate's ``accelerator``.

    Args:
        mixed_precision: of training; of float16, gradients are scaled.
        evaluated: images that are measured at once.

    Raises:
        ValueError: the launcher wants to divide a model otherwise than :mod:`paretune.training.sharding` does.
    """

    def __init__(self, mixed_precision: str = "no", *, evaluated: int = EVALUATED) -> None:
        for other in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
            if _asked(other):
                raise ValueError(
                    f"ACCELERATE_USE_{other} is set, and a model is trained whole in each process or in shards of FSDP2; "
                    "launch without it, or with accelerate launch --use_fsdp --fsdp_version 2"
                )
        self.evaluated = evaluated
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Some of its functions have the group of all processes as a default, and keep it if there is one by then.
            importlib.import_module("torch.distributed.fsdp")
        # Without cpu=True, accelerate leaves the processes of torchrun each alone where there is no accelerator.
        patient = InitProcessGroupKwargs(timeout=_PATIENCE)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patient])
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if self.world > 1:
            _leave_at_exit()
        self.device = self.accelerator.device
        self.precision = MixedPrecision(self.device, mixed_precision)
        self.sharded = self.world > 1 and _asked("FSDP")
        if self.sharded and os.environ.get("FSDP_VERSION", "1") != "2":
            raise ValueError("models are sharded by FSDP2 only; launch with --use_fsdp --fsdp_version 2")

    def check(self, plan: Plan) -> None:
        """Raise ValueError if the processes cannot follow ``plan`` together."""
        for task in plan.tasks:
            if task.batch_size % self.world:
                raise ValueError(
                    f"batch_size={task.batch_size} must be a multiple of the {self.world} processes"
                )
        if self.world > 1 and plan.options.precision == "auto":
            raise ValueError(
                "precision='auto' may end otherwise in each process; name one for all: precision='fp32' or 'bf16'"
            )
        if self.sharded and plan.mixed_precision == "fp16":
            raise ValueError("mixed_precision='fp16' scales gradients that FSDP2 shards; use 'bf16'")
        if self.sharded and plan.together:
            raise ValueError("several tasks at once cannot be sharded; launch without --use_fsdp")
        if self.sharded and not plan.objective.shardable:
            raise ValueError(
                f"{plan.objective!r} looks at weights or features of the model, which are in shards; launch without "
                "--use_fsdp"
            )

    def announce(self, path: Path) -> None:
        """Log which processes there are."""
        log.info("%s: process %d of %d", path, self.rank + 1, self.world)
        if self.sharded:
            log.info(
                "%s: shards of trained weights by FSDP2, of whose options none but the version counts", path
            )
        if self.world == 1 and "MASTER_ADDR" in os.environ:
            log.warning(
                "%s: one process alone, although a launcher is about; to train on a CPU with N processes, use "
                "torchrun --nproc-per-node N",
                path,
            )

    def learner(self, model: Backbone) -> Backbone:
        """What trains: ``model``, which in all processes has the tensors of the main one's then, or shards of it."""
        self._begin_alike(model)
        return sharded(model, self.world) if self.sharded else model

    def _begin_alike(self, model: nn.Module) -> None:
        if self.world == 1:
            return
        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give the parameters of every process the mean of their gradients; one without is zero where another has one.

        So a layer that one process has skipped by chance learns from the others, and what nobody uses keeps no gradient.
        What is sent are the gradients, and a number for each parameter, in as few messages as fit: of adapters mostly one.
        """
        if self.world == 1 or self.sharded:  # FSDP2 has averaged them
            return
        for some in _messages(parameters):
            there = [parameter.grad is not None for parameter in some]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
            sent = torch.cat([*(grad.flatten() for grad in grads), grads[0].new_tensor(there)])
            dist.all_reduce(sent)
            *means, there_sum = (sent / self.world).split([*(grad.numel() for grad in grads), len(some)])
            for parameter, grad, mean, anywhere in zip(some, grads, means, there_sum.tolist(), strict=True):
                parameter.grad = grad.copy_(mean.view_as(grad)) if anywhere else None

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
        candidates: Candidates | None = None,
        **options: Any,
    ) -> Scores:
        """:func:`~paretune.evaluate`, of which each process does its share; ``seen`` sees that alone.

        The seconds are those of this process. Of several, each keeps its share in a directory of its own in ``state``, and
        all end with the same ``candidates``.
        """
        if self.world > 1 and options.get("state") is not None:
            options["state"] = Path(options["state"]) / f"{self.rank + 1}-of-{self.world}"
        shard = (self.rank, self.world)
        options.setdefault("batch_size", self.evaluated)
        scores = evaluate(
            model,
            split,
            attacks,
            seed=seed,
            shard=shard,
            victim=victim,
            seen=seen,
            candidates=candidates,
            **options,
        )
        if candidates is not None and self.world > 1:
            candidates.share(self.total)
        return self._whole(scores)

    def _whole(self, scores: Scores) -> Scores:
        def add_up(bits: Bits) -> Bits:
            return self.total(torch.from_numpy(bits.astype(np.int32))).numpy().astype(bool)

        classes = self.accelerator.gather(torch.tensor([scores.classes], device=self.device))
        return replace(
            scores,
            clean=add_up(scores.clean),
            robust={attack: add_up(bits) for attack, bits in scores.robust.items()},
            classes=int(classes.max()),
            elsewhere={name: self._whole(there) for name, there in scores.elsewhere.items()},
        )

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


@functools.cache
def _leave_at_exit() -> None:
    """End the threads by which this process hears of the others before Python ends: one that runs into the end aborts it.

    Such a thread may still hold a tensor, and takes the lock of the interpreter to let it go
    (https://github.com/pytorch/pytorch/pull/179291). It ends with the last reference to the group, which shards have too.
    """

    def leave() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()

    atexit.register(leave)


def _asked(what: str) -> bool:
    """Whether a launcher wants it."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("true", "1", "yes")


def _messages(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in their order, as many at once as make a message."""
    some: list[Tensor] = []
    for parameter in parameters:
        some.append(parameter)
        if sum(map(torch.numel, some)) >= _MESSAGE:
            yield some
            some = []
    if some:
        yield some
