"""The steps of an attack as one CUDA graph, for small models, whose kernels are over before Python sends the next."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paretune.attacks.copy.options import Engine
from paretune.attacks.copy.steps import MOST_SHAPES, Ascent, check_finite, in_short
from paretune.attacks.copy.twin import Twin
from paretune.attacks.inputs import check_logits
from paretune.attacks.threats import FUSED
from paretune.attacks.waiting import at_once

logger = logging.getLogger(__name__)

G = TypeVar("G")

BUSY = 1.5  # times what Python takes to send a step: a GPU that computes longer has no gaps that a graph could close
_WARM_UP = 3  # runs before a capture: libraries load, autotuners choose, the allocator settles


@dataclass(eq=False)
class CapturedSteps:
    """The steps of an :class:`~paretune.attacks.copy.steps.Ascent` on ``twin``, recorded once and replayed.

    A graph is fixed: shape of the batch, norm, number of steps. The twin's tensors may change in place, as a refresh does,
    and so may step size and radius, which it reads from device memory. Up to four graphs are kept. What needs another
    runs as it is, and so does a model that keeps tensors of its own, what cannot be captured, and what does not give the
    very bits of single steps on the first batch and on changed ones.

    Args:
        twin: what is attacked.
        where_it_helps: leave out what keeps the GPU busy anyway: a graph takes memory, and would save nothing there.
    """

    twin: Twin
    where_it_helps: bool
    _graphs: dict[tuple[Any, ...], "_Graph | None"] = field(default_factory=dict)  # None: as it is

    @property
    def engine(self) -> Engine:
        """What has taken the steps so far."""
        return "graph" if any(self._graphs.values()) else "eager"

    def __call__(self, ascent: Ascent, images_adv: Tensor, steps: int) -> Tensor:
        """As :meth:`Ascent.__call__`."""
        key = (images_adv.shape, type(ascent.threat), steps, ascent.targeted)
        if key not in self._graphs:
            if type(ascent.threat) not in FUSED:
                return ascent(self.twin, images_adv, steps)
            if len(self._graphs) == MOST_SHAPES:
                logger.info(
                    "attack copy: no graph of steps for %s, beside four others", tuple(images_adv.shape)
                )
                return ascent(self.twin, images_adv, steps)
            # One step as it is first, for the errors of the model: a graph has none.
            ascent(self.twin, images_adv, 1)
            with at_once():
                self._graphs[key] = self._record(ascent, images_adv, steps)
        graph = self._graphs[key]
        return ascent(self.twin, images_adv, steps) if graph is None else graph(ascent, images_adv)

    def _record(self, ascent: Ascent, images_adv: Tensor, steps: int) -> "_Graph | None":
        def same(graph: _Graph) -> bool:
            other = replace(
                ascent,
                images=1 - ascent.images,
                goals=(ascent.goals + 1) % graph.classes,
                step_size=ascent.step_size / 2,
                highest_class=graph.classes - 1,
            )
            close = replace(ascent, epsilon=ascent.step_size / 4)
            trials = (ascent, images_adv), (other, other.images), (close, close.images)
            return all(
                torch.equal(graph(again, start), again(self.twin, start, steps)) for again, start in trials
            )

        return trusted(
            f"{steps} steps",
            images_adv,
            self.twin,
            lambda: _Graph.capture(self.twin, ascent, images_adv, steps),
            same,
            once=(lambda: ascent.climb(self.twin, images_adv, 1)) if self.where_it_helps else None,
        )


def trusted(
    what: str,
    images: Tensor,
    twin: Twin,
    capture: Callable[[], G],
    same: Callable[[G], bool],
    once: Callable[[], object] | None,
) -> G | None:
    """The graph that ``capture`` makes, or None where it cannot be made, helped or trusted; the log says which, and why.

    Args:
        what: is recorded, for the log; its last word says what is taken otherwise.
        images: the first batch.
        twin: what is attacked.
        capture: makes the graph.
        same: whether it gives the very bits of what it replaces.
        once: what Python sends without a graph; None where a graph shall be made even if it saves no time.
    """
    shape, name = tuple(images.shape), what.split()[-1]
    if (part := keeper(twin.module)) is not None:
        text = (
            "attack copy: eager %s for %s; %s keeps tensors beside its parameters, and a graph would not see them "
            "change"
        )
        logger.info(text, name, shape, part)
        return None
    try:
        if once is not None:
            sent, done = seconds_of(once, images.device)
            if done > BUSY * sent:
                text = (
                    "attack copy: eager %s for %s; Python sends one in %.1f ms, the GPU needs %.1f ms for it"
                )
                logger.info(text, name, shape, 1000 * sent, 1000 * done)
                return None
        graph = capture()
        if not same(graph):
            text = "attack copy: eager %s for %s; a graph of them gave other bits, as kernels do that add in no fixed order"
            logger.warning(text, name, shape)
            return None
    except Exception as error:  # whatever a capture raises, what it would replace needs none
        logger.warning("attack copy: eager %s for %s; no graph of them (%s)", name, shape, in_short(error))
        return None
    logger.info("attack copy: a graph of %s for %s", what, shape)
    return graph


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
        graph = cls(
            images=ascent.images.clone(),
            images_adv=images_adv.detach().clone(),
            goals=ascent.goals.clone(),
            step_size=scalar.clone(),
            epsilon=scalar.clone(),
            classes=classes,
        )
        graph._fill(ascent, images_adv)
        inside = replace(
            ascent, images=graph.images, goals=graph.goals, step_size=graph.step_size, epsilon=graph.epsilon
        )

        def loop(count: int = steps) -> Tensor:
            result, graph.finite = inside.climb(twin, graph.images_adv, count)
            return result

        graph.replay, graph.result = record_graph(lambda: loop(1), loop, images_adv.device)
        return graph

    def __call__(self, ascent: Ascent, images_adv: Tensor) -> Tensor:
        blank = torch.empty(len(images_adv), self.classes, device="meta")
        check_logits(blank, len(images_adv), ascent.highest_class)
        self._fill(ascent, images_adv)
        self.replay()
        check_finite(self.finite)
        assert self.result is not None  # capture() has set it
        return self.result.clone()

    def _fill(self, ascent: Ascent, images_adv: Tensor) -> None:
        with torch.no_grad():
            self.images.copy_(ascent.images)
            self.images_adv.copy_(images_adv)
            self.goals.copy_(ascent.goals)
            self.step_size.fill_(ascent.step_size)
            self.epsilon.fill_(ascent.epsilon)


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
        # thread_local: a data loader's pinning thread may allocate meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = loop()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, result


def keeper(module: nn.Module) -> str | None:
    """A part that keeps tensors which are neither parameters nor buffers, such as what it once made of its weights.

    They may be others after a refresh (LeViT, TinyViT), and a graph would go on reading the old ones.
    """
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            value = tuple(value.values()) if isinstance(value, dict) else value
            inside = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(item, Tensor) for item in inside):
                return f"{name}.{attribute}".lstrip(".")
    return None


def seconds_of(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Until Python has sent ``run``, and until the GPU has computed it."""
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    sent = time.perf_counter() - began
    torch.cuda.synchronize(device)
    return sent, time.perf_counter() - began
