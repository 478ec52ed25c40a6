"""FAB, the fast adaptive boundary attack (Croce & Hein 2020, "Minimally distorted Adversarial Examples with a Fast
Adaptive Boundary Attack", https://arxiv.org/abs/1907.02044, algorithm 1), in its targeted form of AutoAttack
(https://arxiv.org/abs/2003.01690, section 4).

It looks for the nearest adversarial point rather than the worst one of a ball: it linearises the decision boundary,
steps just across it while being drawn to the clean image, and then comes closer to the clean image again.

One thing differs. The paper asks the model after each step whether the point is across, and goes back if so. Here only a
point inside the ball can count, so one outside always goes back, unasked: a step takes one forward pass instead of two,
which also tells whether the point it linearises at is adversarial.
"""

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from paretune.attacks.base import Oracle
from paretune.attacks.losses import nearest_classes
from paretune.attacks.projections import onto_plane
from paretune.attacks.search import Search, SearchAttack
from paretune.attacks.threats import L1, L2, Linf, Threat
from paretune.kernels.reference import per_example

OVERSHOOT = 1.05  # eta of algorithm 1
BACKWARDS = 0.9  # beta
LARGEST_PULL = 0.1  # alpha_max


@dataclass(frozen=True)
class FAB(SearchAttack):
    """Search for the nearest adversarial image; it counts where it lies inside the ball.

    What comes back for an image without one is the clean image.

    Args:
        steps: linearisations of a run, at least 1.
        restarts: runs for each target, the first from the image itself, the others from random points of the ball of
            half the radius; each reruns only what is unsolved.
        targets: how many wrong classes to try, the likeliest first, each with its own run. None takes all classes at
            once and steps to the nearest boundary, which costs a backward pass for each class and step.

    Raises:
        TypeError: ``threat`` is not Linf, L2 or L1.
        ValueError: a field is out of range.
    """

    _: KW_ONLY
    steps: int = 100
    restarts: int = 1
    targets: int | None = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "restarts", *(() if self.targets is None else ("targets",)))
        if not isinstance(self.threat, Linf | L2 | L1):
            raise TypeError(f"FAB: threat must be Linf, L2 or L1, got {self.threat!r}")

    def passes(self, classes: int) -> int:
        """See :meth:`~paretune.attacks.base.Attack.passes`."""
        gradients = classes if self.targets is None else 1
        targets = 1 if self.targets is None else min(self.targets, classes - 1)
        return (1 + gradients) * self.steps * self.restarts * targets

    def solve(self, search: Search) -> None:
        """See :meth:`~paretune.attacks.search.SearchAttack.solve`."""
        oracle, examples = search.oracle, search.examples
        if self.targets is None:
            targets = torch.full_like(examples.labels, -1)[:, None]
        else:
            targets = nearest_classes(examples.clean, examples.labels, self.targets)
        threat, half = self.threat, self.threat.with_epsilon(self.threat.epsilon / 2)
        for number, part in search.runs(targets.shape[1] * self.restarts):
            first = number % self.restarts == 0
            start = part.images if first else half.random_start(part.images, part.streams, number)
            towards = targets[search.rows, number // self.restarts]
            lanes = _Lanes(part.images, part.labels, towards, start)
            for tick in range(self.steps + 1):
                final = tick == self.steps
                with torch.set_grad_enabled(not final):
                    points = lanes.points.detach().requires_grad_(not final)
                    logits = oracle.logits(points)
                here = points.detach()
                search.note(here, logits, among=threat.distance(here, lanes.images) <= threat.epsilon)
                if final or not search.left:
                    break
                lead, normal = self._plane(oracle, lanes, points, logits)
                lanes, lead, normal = search.shrink(lanes, lead, normal)
                if tick == 0:
                    oracle.count_zeros(normal)
                lanes = self._move(lanes, lead, normal)

    def _plane(
        self, oracle: Oracle, lanes: "_Lanes", points: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By how much the wrong class leads, (lanes,), and the gradient of that."""
        right = logits.gather(1, lanes.labels[:, None]).squeeze(1)
        if self.targets is not None:
            leads = logits.gather(1, lanes.targets[:, None]).squeeze(1) - right
            return leads.detach(), oracle.gradient(leads, points)
        nearest = torch.full_like(right.detach(), torch.inf)
        lead, normal = torch.zeros_like(nearest), torch.zeros_like(points)
        for other in range(logits.shape[1]):
            leads = logits[:, other] - right
            gradient = oracle.gradient(leads, points, retain_graph=other < logits.shape[1] - 1)
            away = leads.detach().abs() / (_dual_norm(self.threat, gradient) + 1e-12)
            nearer = (away < nearest) & (lanes.labels != other)
            nearest = torch.where(nearer, away, nearest)
            lead = torch.where(nearer, leads.detach(), lead)
            normal = torch.where(per_example(nearer, normal), gradient, normal)
        return lead, normal

    def _move(self, lanes: "_Lanes", lead: Tensor, normal: Tensor) -> "_Lanes":
        """Across the plane from the point and from the image, between the two (equations 7 and 8), and back."""
        threat, points, images = self.threat, lanes.points.detach(), lanes.images
        lead_at_image = lead + (normal * (images - points)).flatten(1).sum(dim=1)
        here = onto_plane(threat, points, normal, -lead)
        there = onto_plane(threat, images, normal, -lead_at_image)
        nothing = torch.zeros_like(here)
        way, way_from_image = (threat.distance(step, nothing).clamp(min=1e-8) for step in (here, there))
        pull = per_example((way / (way + way_from_image)).clamp(max=LARGEST_PULL), points)
        across = (1 - pull) * (points + OVERSHOOT * here) + pull * (images + OVERSHOOT * there)
        across = across.clamp(0, 1)
        outside = per_example(threat.distance(across, images) > threat.epsilon, across)
        return replace(lanes, points=torch.where(outside, images + BACKWARDS * (across - images), across))


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a run remembers of each image."""

    images: Tensor
    labels: Tensor
    targets: Tensor  # -1: all classes
    points: Tensor


def _dual_norm(threat: Threat, gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    if isinstance(threat, Linf):
        return flat.abs().sum(dim=1)
    return flat.abs().amax(dim=1) if isinstance(threat, L1) else flat.square().sum(dim=1).sqrt()
