"""The k steps of an attack as one CUDA graph: k forward, backward and step launches for the price of one call.

With small models and images the GPU waits for Python between kernels; a replayed graph has no Python in it. What is
captured is fixed: the shapes, the number of steps, the model's own tensors (their values may change, in place). What
may change between replays lies in device memory: images, goals, step size, epsilon and the seed of the random start.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretune.kernels import Fused, pgd_step, random_start
from paretune.kernels.reference import Norm, memory_format_of, model_input

_WARM_UP = 3  # runs before a capture: libraries load, autotuners choose, the allocator settles


@dataclass(frozen=True, kw_only=True)
class StepLoop:
    """k steps of PGD with a fixed number of forward and backward passes and nothing in between.

    Args:
        gradient_of: from the network's input and the goals (batch,) to the gradient of the loss that is climbed,
            with respect to that input; shape of the input. It sees no gradient tracking and must turn it on itself
            (``torch.enable_grad``, or ``torch.func.grad``).
        norm: ``"Linf"`` or ``"L2"``.
        steps: at least 1.
        mean: the network's normalisation, float32, one value a channel; None leaves images as they are.
        std: likewise, above 0.
        out_dtype: type of the network's input; None is float32.
        starts_randomly: start at a random point of the ball, else at the image.
        fused: see :func:`paretune.kernels.pgd_step`.

    Raises:
        ValueError: ``steps`` is below 1.
    """

    gradient_of: Callable[[Tensor, Tensor], Tensor]
    norm: Norm
    steps: int
    mean: Tensor | None = None
    std: Tensor | None = None
    out_dtype: torch.dtype | None = None
    starts_randomly: bool = True
    fused: Fused = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        goals: Tensor,
        *,
        step_size: float | Tensor,
        epsilon: float | Tensor,
        seed: Tensor,
    ) -> Tensor:
        """Attack ``images`` (batch, channels, height, width), float32 in [0, 1], without a graph.

        Args:
            images: clean images.
            goals: what ``gradient_of`` takes.
            step_size: see :func:`paretune.kernels.pgd_step`.
            epsilon: likewise.
            seed: of the random start, int64 with one value.

        Returns:
            The last point, float32, shape of ``images``.
        """
        images_adv = images
        if self.starts_randomly:
            images_adv = random_start(images, epsilon, seed, norm=self.norm, fused=self.fused)
        mean, std = (_per_channel(each, images) for each in (self.mean, self.std))
        network_input = model_input(images_adv, mean, std, self.out_dtype or torch.float32)
        for _ in range(self.steps):
            images_adv, network_input = pgd_step(
                self.gradient_of(network_input, goals),
                images,
                images_adv,
                norm=self.norm,
                step_size=step_size,
                epsilon=epsilon,
                mean=self.mean,
                std=self.std,
                out_dtype=self.out_dtype,
                fused=self.fused,
            )
        return images_adv

    def capture(
        self,
        images: Tensor,
        goals: Tensor,
        *,
        step_size: float | Tensor,
        epsilon: float | Tensor,
        seed: int = 0,
    ) -> "CapturedLoop":
        """Record the loop for batches like ``images`` and ``goals``; the arguments are copied.

        Raises:
            ValueError: the images are not on a CUDA device, or there are none.
            RuntimeError: a capture is under way already, or ``gradient_of`` does what a graph cannot hold.
        """
        check_capturable(images)
        captured = CapturedLoop(
            images=images.detach().clone(memory_format=memory_format_of(images)),
            goals=goals.detach().clone(),
            step_size=_on_device(step_size, images),
            epsilon=_on_device(epsilon, images),
            seed=torch.tensor(seed, dtype=torch.int64, device=images.device),
        )

        def loop(self: StepLoop = self) -> Tensor:
            return self(
                captured.images,
                captured.goals,
                step_size=captured.step_size,
                epsilon=captured.epsilon,
                seed=captured.seed,
            )

        one_step = replace(self, steps=1)  # loads and tunes everything that k steps use
        captured.replay, captured.result = record_graph(lambda: loop(one_step), loop, images.device)
        return captured


@dataclass(kw_only=True)
class CapturedLoop:
    """A recorded :class:`StepLoop`; made by :meth:`StepLoop.capture`.

    Args:
        images: the buffer that the graph reads.
        goals: likewise.
        step_size: likewise, float32.
        epsilon: likewise, float32.
        seed: likewise, int64; one more after each call that is given none.
        replay: runs the graph on the current stream.
        result: the buffer that the graph writes.
    """

    images: Tensor
    goals: Tensor
    step_size: Tensor
    epsilon: Tensor
    seed: Tensor
    replay: Callable[[], None] = lambda: None
    result: Tensor | None = None

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        goals: Tensor,
        *,
        step_size: float | Tensor | None = None,
        epsilon: float | Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Attack another batch of the same shape; amounts that are not given stay as they were.

        Returns:
            A copy of the result, which the next replay does not touch.

        Raises:
            ValueError: the batch is not like the captured one.
        """
        assert self.result is not None  # capture() has set it
        for name, given, buffer in (("images", images, self.images), ("goals", goals, self.goals)):
            if given.shape != buffer.shape or given.dtype != buffer.dtype or given.device != buffer.device:
                raise ValueError(
                    f"the graph was captured for {name} of shape {tuple(buffer.shape)}, {buffer.dtype} on "
                    f"{buffer.device}; got {tuple(given.shape)}, {given.dtype} on {given.device}. Run such a batch "
                    "without the graph, or capture another"
                )
            buffer.copy_(given)
        for name, amount in (("step_size", step_size), ("epsilon", epsilon)):
            if amount is not None:
                _write(name, amount, getattr(self, name))
        if seed is None:
            self.seed.add_(1)
        else:
            self.seed.fill_(seed)
        self.replay()
        return self.result.clone()


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


def _on_device(amount: float | Tensor, images: Tensor) -> Tensor:
    """A copy in device memory, where a replay reads it."""
    return torch.as_tensor(amount, dtype=torch.float32).to(images.device, copy=True)


def _write(name: str, amount: float | Tensor, buffer: Tensor) -> None:
    if isinstance(amount, Tensor):
        if amount.shape != buffer.shape:
            raise ValueError(
                f"the graph was captured for {name} of shape {tuple(buffer.shape)}, got {tuple(amount.shape)}"
            )
        buffer.copy_(amount)
    else:
        buffer.fill_(amount)


def _per_channel(values: Tensor | None, images: Tensor) -> Tensor | None:
    return None if values is None else values.reshape(1, -1, *([1] * (images.ndim - 2)))
