"""Random numbers that belong to an image.

What an image draws must not depend on which of its neighbours are solved, nor on how the set was cut into batches. So
each image has its own stream, made from the seed of the call, the image's place in the set and the number of the run.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Streams:
    """The random numbers of a batch.

    Args:
        seed: of the call.
        places: (batch,) on the CPU: the number of each image in its set.
    """

    seed: int
    places: Tensor

    def take(self, rows: Tensor) -> Self:
        """The streams of some images of the batch."""
        return replace(self, places=self.places[rows.cpu()])

    def derive(self, name: str) -> Self:
        """Streams for another purpose, independent of these."""
        return replace(self, seed=_mix(self.seed, name))

    def draw(
        self,
        run: int,
        images: Tensor,
        sample: Callable[[Tensor, torch.Generator], Tensor],
    ) -> Tensor:
        """``sample(image, generator)`` for each image of the batch, from its own stream.

        Args:
            run: number of the restart or target; each has its own numbers.
            images: (batch, ...).
            sample: for example :meth:`~paretune.attacks.Threat.random_change`; takes a batch of one.
        """
        if not len(images):
            return images.clone()
        generator = torch.Generator(images.device)
        return torch.cat(
            [
                sample(images[row : row + 1], generator.manual_seed(_mix(self.seed, run, place)))
                for row, place in enumerate(self.places.tolist())
            ]
        )

    def shared(self, run: int) -> torch.Generator:
        """One stream on the CPU for all images of the set, whatever batch they are in."""
        return torch.Generator().manual_seed(_mix(self.seed, run, "shared"))


def _mix(*parts: int | str) -> int:
    """A seed of 63 bits; neighbouring inputs give unrelated ones, which neighbouring seeds of a generator may not."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
