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

from paretune.attacks.active import ActiveSet, take
from paretune.attacks.base import Batch, Oracle, SearchAttack
from paretune.attacks.losses import nearest_classes
from paretune.attacks.projections import onto_plane
from paretune.attacks.threats import L1, L2, Linf, Threat, per_example

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

    def search(self, oracle: Oracle, batch: Batch) -> tuple[Tensor, Tensor]:
        """See :meth:`~paretune.attacks.base.SearchAttack.search`."""
        found = batch.images.clone()
        unsolved = torch.arange(len(found), device=found.device)
        if self.targets is None:
            targets = torch.full_like(batch.labels, -1)[:, None]
        else:
            targets = nearest_classes(batch.clean, batch.labels, self.targets)
        half = self.threat.with_epsilon(self.threat.epsilon / 2)
        for number in range(targets.shape[1] * self.restarts):
            if not len(unsolved):
                break
            part, towards = batch.take(unsolved), targets[unsolved, number // self.restarts]
            first = number % self.restarts == 0
            start = part.images if first else half.random_start(part.images, part.streams, number)
            lanes = _Lanes(part.images, part.labels, towards, start)
            unsolved = _Run(self, oracle).solve(lanes, unsolved, found)
        solved = torch.ones_like(batch.labels, dtype=torch.bool)
        solved[unsolved] = False
        return found, solved


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a run remembers of each image."""

    images: Tensor
    labels: Tensor
    targets: Tensor  # -1: all classes
    points: Tensor


@dataclass(frozen=True)
class _Run:
    """One run from one start."""

    attack: FAB
    oracle: Oracle

    def solve(self, lanes: _Lanes, rows: Tensor, found: Tensor) -> Tensor:
        """Note the solutions in ``found``, whose entries ``rows`` the lanes are, and return the others' rows."""
        active, threat = ActiveSet(rows), self.attack.threat
        for tick in range(self.attack.steps + 1):
            final = tick == self.attack.steps
            with torch.set_grad_enabled(not final):
                points = lanes.points.detach().requires_grad_(not final)
                logits = self.oracle.logits(points)
            here = points.detach()
            inside = threat.distance(here, lanes.images) <= threat.epsilon
            solved = self.oracle.fooled(here, logits, lanes.labels, active.searching & inside)
            found[active.rows[solved]] = here[solved]
            keep = active.retire(solved)
            if final or not len(active.rows):
                break
            lead, normal = self.plane(logits, points, lanes.labels, lanes.targets)
            if keep is not None:
                lanes, lead, normal = take(lanes, keep), lead[keep], normal[keep]
            if tick == 0:
                self.oracle.count_zeros(normal)
            lanes = self.move(lanes, lead, normal)
        return active.rows[active.searching]

    def plane(self, logits: Tensor, points: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the wrong class leads, (lanes,), and the gradient of that."""
        right = logits.gather(1, labels[:, None]).squeeze(1)
        if self.attack.targets is not None:
            leads = logits.gather(1, targets[:, None]).squeeze(1) - right
            return leads.detach(), self.oracle.gradient(leads, points)
        nearest = torch.full_like(right.detach(), torch.inf)
        lead, normal = torch.zeros_like(nearest), torch.zeros_like(points)
        for other in range(logits.shape[1]):
            leads = logits[:, other] - right
            gradient = self.oracle.gradient(leads, points, retain_graph=other < logits.shape[1] - 1)
            away = leads.detach().abs() / (_dual_norm(self.attack.threat, gradient) + 1e-12)
            nearer = (away < nearest) & (labels != other)
            nearest = torch.where(nearer, away, nearest)
            lead = torch.where(nearer, leads.detach(), lead)
            normal = torch.where(per_example(nearer, normal), gradient, normal)
        return lead, normal

    def move(self, lanes: _Lanes, lead: Tensor, normal: Tensor) -> _Lanes:
        """Across the plane from the point and from the image, between the two (equations 7 and 8), and back."""
        threat, points, images = self.attack.threat, lanes.points.detach(), lanes.images
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


def _dual_norm(threat: Threat, gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    if isinstance(threat, Linf):
        return flat.abs().sum(dim=1)
    return flat.abs().amax(dim=1) if isinstance(threat, L1) else flat.square().sum(dim=1).sqrt()
