"""Square Attack (Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random
search", https://arxiv.org/abs/1912.00049): change a random square, keep the change if the right class leads by less.

It sees logits only, no gradient, so it also works where gradients are masked.
"""

import functools
import math
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from paretune.attacks.losses import margin
from paretune.attacks.search import Search, SearchAttack
from paretune.attacks.threats import L1, L2, Linf, Threat
from paretune.kernels.reference import per_example

# Queries of a run of 10,000 after which the share of changed pixels is halved (section 4.3).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square(SearchAttack):
    """Random search over squares of pixels; forward passes only.

    All images of a set share the place of each query's square; the first point and the colours are each image's own. So
    what an image draws does not depend on its neighbours.

    Args:
        queries: changes tried in a run, at least 1.
        p_init: share of the pixels that the first squares cover, 0 < p_init <= 1.
        restarts: runs; each reruns only what is unsolved.
        schedule: queries over which the squares shrink to 1/512 of ``p_init``. The default, whatever ``queries`` is,
            is that of AutoAttack; set it to ``queries`` for the rescaled schedule of the paper.

    Raises:
        TypeError: ``threat`` is not Linf, L2 or L1.
        ValueError: a field is out of range; or, when called, the images are not (batch, channels, height, width).
    """

    _: KW_ONLY
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    schedule: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("queries", "restarts", "schedule")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"Square: p_init must lie in (0, 1], got {self.p_init!r}")
        if not isinstance(self.threat, Linf | L2 | L1):
            raise TypeError(f"Square: threat must be Linf, L2 or L1, got {self.threat!r}")

    def passes(self, classes: int) -> int:
        """See :meth:`~paretune.attacks.base.Attack.passes`."""
        return self.queries * self.restarts

    @torch.no_grad()
    def solve(self, search: Search) -> None:
        """See :meth:`~paretune.attacks.search.SearchAttack.solve`; an unsolved image has its smallest margin."""
        if search.images.ndim != 4:
            raise ValueError(
                f"Square needs images (batch, channels, height, width), got shape {tuple(search.images.shape)}"
            )
        for run, part in search.runs(self.restarts):
            generator = part.streams.shared(run)
            points = part.streams.draw(run, part.images, functools.partial(_first_point, self.threat))
            colours = part.streams.derive("colours").draw(run, part.images, self._colours)
            margins = torch.full_like(part.clean[:, 0], torch.inf)
            lanes, proposed = _Lanes(part.images, part.labels, points, margins, colours), points
            for query in range(self.queries + 1):
                if query:
                    side = self.side(query - 1, part.images)
                    colour = lanes.colours[:, query - 1, :, None, None].to(lanes.points.dtype)
                    proposed = _propose(self.threat, lanes.images, lanes.points, colour, side, generator)
                logits = search.oracle.logits(proposed)
                search.note(proposed, logits)
                margins = margin(logits, lanes.labels)
                better = margins < lanes.margins
                lanes = replace(
                    lanes,
                    points=torch.where(per_example(better, proposed), proposed, lanes.points),
                    margins=torch.where(better, margins, lanes.margins),
                )
                if not search.left:
                    break
                (lanes,) = search.shrink(lanes)
            search.offer(lanes.points, -lanes.margins)

    def _colours(self, images: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(images), self.queries, images.shape[1])
        return torch.randint(2, shape, generator=generator, device=generator.device, dtype=torch.int8) * 2 - 1

    def side(self, query: int, images: Tensor) -> int:
        """Side of the square of a query, in pixels (section 4.3)."""
        height, width = images.shape[2:]
        halvings = sum(query * 10_000 > start * self.schedule for start in _HALVINGS)
        side = round(math.sqrt(self.p_init / 2**halvings * height * width))
        if isinstance(self.threat, Linf):
            return min(max(side, 1), height, width)
        side = max(side, 3)  # two halves of opposite sign around a centre
        return min(side + (side % 2 == 0), height, width)


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a run remembers of each image."""

    images: Tensor
    labels: Tensor
    points: Tensor
    margins: Tensor
    colours: Tensor  # (lanes, queries, channels) of -1 and 1


def _first_point(threat: Threat, images: Tensor, generator: torch.Generator) -> Tensor:
    """Stripes for Linf, a grid of bumps for L2 and L1 (sections 4.2 and 4.4)."""
    batch, channels, height, width = images.shape
    if isinstance(threat, Linf):
        signs = _signs((batch, channels, 1, width), generator, images)
        return threat.project(images + threat.epsilon * signs, images)
    change = torch.zeros_like(images)
    side = max(min(height, width) // 5, 1)
    for top in range((height - 5 * side) // 2 if height >= 5 * side else 0, height - side + 1, side):
        for left in range((width - 5 * side) // 2 if width >= 5 * side else 0, width - side + 1, side):
            bump = _bump(threat, side, _coin(generator), images)
            change[:, :, top : top + side, left : left + side] = bump * _signs(
                (batch, channels, 1, 1), generator, images
            )
    return _fill(threat, images, change)


def _propose(
    threat: Threat, images: Tensor, points: Tensor, colour: Tensor, side: int, generator: torch.Generator
) -> Tensor:
    """The points with one random square changed, at the same place in every image.

    Args:
        colour: (batch, channels, 1, 1) of -1 and 1.
    """
    channels, height, width = images.shape[1:]
    window = _window(height, width, side, generator)
    if isinstance(threat, Linf):
        # From the clean image by epsilon up or down, one sign a channel (algorithm 2).
        proposed = points.clone()
        proposed[window] = images[window] + threat.epsilon * colour
        return threat.project(proposed, images)
    # Take the budget of one window away and give it, with what was unused, to another (algorithm 3).
    other = _window(height, width, side, generator)
    change = points - images
    union = torch.zeros_like(change[:1])
    union[window] = union[other] = 1
    spent, freed = _size(threat, change, (1, 2, 3)), _size(threat, change * union, (2, 3))
    old = change[window]
    bump = _bump(threat, side, _coin(generator), images) * colour
    shape = bump + old / (_size(threat, old, (2, 3)) + 1e-12)
    if isinstance(threat, L2):
        unused = (threat.epsilon**2 - spent**2).clamp(min=0) / channels
        budget = (unused + freed**2).sqrt()
    else:
        # For all channels together in its authors' code (Croce & Hein 2021), which the projection then cuts.
        budget = (threat.epsilon - spent).clamp(min=0) + freed * channels
    change[other] = 0
    change[window] = shape / (_size(threat, shape, (2, 3)) + 1e-12) * budget
    return _fill(threat, images, change)


def _fill(threat: Threat, images: Tensor, change: Tensor) -> Tensor:
    """The images changed as far as the ball allows."""
    if isinstance(threat, L2):
        change = change * (threat.epsilon / (_size(threat, change, (1, 2, 3)) + 1e-12))
    return threat.project(images + change, images)


def _size(threat: Threat, change: Tensor, axes: tuple[int, ...]) -> Tensor:
    order = 2 if isinstance(threat, L2) else 1
    size: Tensor = torch.linalg.vector_norm(change, ord=order, dim=axes, keepdim=True)
    return size


def _bump(threat: Threat, side: int, upright: bool, like: Tensor) -> Tensor:
    """Two hills of opposite sign side by side, (side, side), of norm 1 (equation 2 and figure 3)."""
    half, power = side // 2, 2 if isinstance(threat, L2) else 4
    upper, lower = (_hill(height, side, power) for height in (half, side - half))
    bump = torch.cat([upper / (_size(threat, upper, (0, 1)) + 1e-12), -lower / _size(threat, lower, (0, 1))])
    bump = bump / _size(threat, bump, (0, 1))
    return (bump if upright else bump.T).to(device=like.device)


@functools.cache
def _hill(height: int, width: int, power: int) -> Tensor:
    """Rings around the centre; each adds 1 / number^power to all it encloses."""
    hill = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        hill[rows, columns] += 1 / (ring + 1) ** power
    return hill


def _window(
    height: int, width: int, side: int, generator: torch.Generator
) -> tuple[slice, slice, slice, slice]:
    # As in its authors' code, never at the last row or column, unless it fills them.
    top = int(torch.randint(max(height - side, 1), (), generator=generator))
    left = int(torch.randint(max(width - side, 1), (), generator=generator))
    return (slice(None), slice(None), slice(top, top + side), slice(left, left + side))


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    signs: Tensor = torch.randint(2, shape, generator=generator, device=generator.device) * 2 - 1
    return signs.to(like)


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.randint(2, (), generator=generator, device=generator.device))
