"""The steps of an attack as one CUDA graph, for small models, whose kernels are over before Python sends the next."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from paretune.attacks.copy.steps import MOST_SHAPES, NORMS, Ascent, check_finite
from paretune.attacks.copy.twin import Twin
from paretune.attacks.inputs import check_logits

_WARM_UP = 3  # runs before a capture: libraries load, autotuners choose, the allocator settles


@dataclass(eq=False)
class CapturedSteps:
    """The steps of an :class:`~paretune.attacks.copy.steps.Ascent` on ``twin``, recorded once and replayed.

    A graph is fixed: shape of the batch, norm, number of steps. The twin's tensors may change in place, as a refresh does,
    and so may step size and radius, which it reads from device memory. Up to four graphs are kept; what needs another
    runs as it is.
    """

    twin: Twin
    _graphs: dict[tuple[Any, ...], "_Graph"] = field(default_factory=dict)

    def __call__(self, ascent: Ascent, images_adv: Tensor, steps: int) -> Tensor:
        """As :meth:`Ascent.__call__`.

        Raises:
            ValueError: there is no CUDA device under the images, the norm has no fused step, or as there.
            RuntimeError: a capture is under way already, or the model does what a graph cannot hold.
        """
        check_capturable(ascent.images)
        if type(ascent.threat) not in NORMS:
            raise ValueError(
                f"a CUDA graph can hold steps under {', '.join(NORMS.values())}, got {ascent.threat!r}; "
                "make the attack copy with cuda_graph=False"
            )
        key = (images_adv.shape, type(ascent.threat), steps, ascent.targeted)
        if key not in self._graphs:
            if len(self._graphs) == MOST_SHAPES:
                return ascent(self.twin, images_adv, steps)
            # One step as it is first, for its errors: a graph has none.
            ascent(self.twin, images_adv, 1)
            self._graphs[key] = _Graph.capture(self.twin, ascent, images_adv, steps)
        return self._graphs[key](ascent, images_adv)


@dataclass(eq=False)
class _Graph:
    """One recorded loop and the buffers it reads and writes."""

    images: Tensor
    images_adv: Tensor
    goals: Tensor
    step_size: Tensor
    epsilon: Tensor
    classes: int
    replay: Callable[[], None] = lambda: None
    result: Tensor | None = None
    finite: list[Tensor] = field(default_factory=list)

    @classmethod
    def capture(cls, twin: Twin, ascent: Ascent, images_adv: Tensor, steps: int) -> "_Graph":
        scalar = images_adv.new_zeros(())
        with torch.no_grad():
            classes = twin(images_adv[:1]).shape[1]
        made = cls(
            images=ascent.images.clone(),
            images_adv=images_adv.detach().clone(),
            goals=ascent.goals.clone(),
            step_size=scalar.clone(),
            epsilon=scalar.clone(),
            classes=classes,
        )
        made._fill(ascent, images_adv)

        inside = replace(
            ascent, images=made.images, goals=made.goals, step_size=made.step_size, epsilon=made.epsilon
        )

        def loop(count: int = steps) -> Tensor:
            result, made.finite = inside.climb(twin, made.images_adv, count)
            return result

        made.replay, made.result = record_graph(lambda: loop(1), loop, images_adv.device)
        return made

    def __call__(self, ascent: Ascent, images_adv: Tensor) -> Tensor:
        check_logits(
            torch.empty(len(images_adv), self.classes, device="meta"),
            len(images_adv),
            int(ascent.goals.max()),
        )
        self._fill(ascent, images_adv)
        self.replay()
        check_finite(self.finite)
        assert self.result is not None  # capture() has set it
        return self.result.clone()

    def _fill(self, ascent: Ascent, images_adv: Tensor) -> None:
        with torch.no_grad():
            for buffer, value in (
                (self.images, ascent.images),
                (self.images_adv, images_adv),
                (self.goals, ascent.goals),
            ):
                buffer.copy_(value)
            self.step_size.copy_(torch.as_tensor(ascent.step_size))
            self.epsilon.copy_(torch.as_tensor(ascent.epsilon))


def check_capturable(images: Tensor) -> None:
    """Refuse what no graph can hold.

    Raises:
        ValueError: the images are not on a CUDA device, or there are none.
        RuntimeError: a capture is under way already.
    """
    if not images.is_cuda:
        raise ValueError(
            f"a CUDA graph needs images on a CUDA device, got {images.device}; run the loop as it is"
        )
    if images.numel() == 0:
        raise ValueError(f"a CUDA graph needs at least one image, got shape {tuple(images.shape)}")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a CUDA graph is being captured already; capture this loop before or after it")


def record_graph(
    warm_up: Callable[[], Tensor], loop: Callable[[], Tensor], device: torch.device
) -> tuple[Callable[[], None], Tensor]:
    """Capture ``loop``; returns what replays it and the tensor that each replay writes."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                warm_up()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: a data loader's pinning thread may allocate meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = loop()
        except RuntimeError as error:
            raise RuntimeError(
                "the attack cannot be captured as a CUDA graph: its gradient must not wait for the GPU (.item(), .cpu(), "
                f"printing, shapes that depend on values) or load a kernel for the first time; CUDA says: {error}"
            ) from error

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, result
