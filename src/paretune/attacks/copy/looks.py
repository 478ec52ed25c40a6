"""The looks of a search as CUDA graphs: one forward pass of a batch, and one backward pass of whatever its loss is."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paretune.attacks.copy import captured
from paretune.attacks.copy.options import Engine
from paretune.attacks.copy.twin import Twin
from paretune.backbones.threads import Lock

OFTEN = 10  # looks at batches of one shape before it is recorded, which takes about as many
MOST_LOOKS = 8  # shapes that are recorded; each keeps the memory of a look


@dataclass(eq=False)
class CapturedLooks:
    """Logits of ``twin``, and their gradients, replayed for the shapes of batches that a search often looks at.

    The rules are those of :class:`~paretune.attacks.copy.captured.CapturedSteps`, for up to eight shapes. Several passes may
    be under way at once, in several threads too: a backward pass that finds its forward pass overwritten replays that first.

    Args:
        twin: what is attacked.
        where_it_helps: leave out what keeps the GPU busy anyway.
    """

    twin: Twin
    where_it_helps: bool
    _recording: Lock = field(default_factory=Lock)
    _seen: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    _graphs: dict[tuple[Any, ...], "_Graph | None"] = field(default_factory=dict)  # None: as it is

    @property
    def engine(self) -> Engine:
        """What has taken the looks so far."""
        return "graph" if any(self._graphs.values()) else "eager"

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 logits (batch, classes) of ``images``, through which gradients flow as through those of the twin."""
        differentiated = torch.is_grad_enabled() and images.requires_grad
        key = (images.shape, images.stride(), images.dtype, differentiated)
        with self._recording:
            self._seen[key] += 1
            if self._seen[key] == OFTEN and len(self._graphs) < MOST_LOOKS:
                with torch.inference_mode(False):
                    self._graphs[key] = self._record(images, differentiated)
            graph = self._graphs.get(key)
        if graph is None:
            return self.twin(images)
        return _Look.apply(images, graph) if differentiated else graph.forward(images)[0]

    def _record(self, images: Tensor, differentiated: bool) -> "_Graph | None":
        def eager(images: Tensor) -> tuple[Tensor, ...]:
            leaf = images.detach().clone().requires_grad_(differentiated)
            with torch.set_grad_enabled(differentiated):
                logits = self.twin(leaf)
                gradients = torch.autograd.grad(logits, leaf, logits.detach()) if differentiated else ()
            return logits.detach(), *gradients

        def replayed(graph: _Graph, images: Tensor) -> tuple[Tensor, ...]:
            logits, turn = graph.forward(images)
            return (logits, graph.backward(images, turn, logits)) if differentiated else (logits,)

        def same(graph: _Graph) -> bool:
            trials = (images.detach(), 1 - images.detach())
            return all(all(map(torch.equal, replayed(graph, trial), eager(trial))) for trial in trials)

        return captured.trusted(
            "differentiated looks" if differentiated else "looks",
            images,
            self.twin,
            lambda: _Graph(self.twin, images, differentiated),
            same,
            once=(lambda: eager(images)) if self.where_it_helps else None,
        )


class _Graph:
    """A recorded forward pass and its backward pass, with the buffers they read and write.

    Args:
        twin: what is attacked.
        images: a batch.
        differentiated: record the backward pass too.
    """

    def __init__(self, twin: Twin, images: Tensor, differentiated: bool) -> None:
        # Of the buffers. Who holds it must not differentiate, because a thread of autograd's own comes here as well.
        self._lock = Lock()
        self._turn = 0  # of the forward pass whose activations there are
        self._images = images.detach().clone().requires_grad_(differentiated)

        def forward() -> Tensor:
            with torch.set_grad_enabled(differentiated):
                return twin.logits(twin.enter(self._images))

        def backward() -> Tensor:
            # Retained, so that no later pass overwrites the activations, and one forward pass may have several.
            (gradient,) = torch.autograd.grad(self._logits, self._images, self._slopes, retain_graph=True)
            return gradient

        def both() -> Tensor:
            logits = forward()
            return torch.autograd.grad(logits.sum(), self._images)[0] if differentiated else logits

        self._replay, self._logits = captured.record_graph(both, forward, images.device)
        if differentiated:
            self._slopes = torch.zeros_like(self._logits)
            self._replay_back, self._gradient = captured.record_graph(
                lambda: self._slopes, backward, images.device
            )

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, int]:
        """Logits of ``images``, and the number of this pass."""
        with self._lock:
            self._turn += 1
            self._images.copy_(images)
            self._replay()
            return self._logits.detach().clone(), self._turn

    @torch.no_grad()
    def backward(self, images: Tensor, turn: int, slopes: Tensor) -> Tensor:
        """Gradient with respect to ``images`` of logits with these ``slopes``, after the forward pass number ``turn``."""
        with self._lock:
            if turn != self._turn:
                self.forward(images)
            self._slopes.copy_(slopes)
            self._replay_back()
            return self._gradient.clone()


class _Look(torch.autograd.Function):
    """A pass through a :class:`_Graph`, as autograd takes it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, graph: _Graph) -> Tensor:
        logits, ctx.turn = graph.forward(images)
        ctx.graph = graph
        ctx.save_for_backward(images)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        return ctx.graph.backward(images, ctx.turn, slopes), None
