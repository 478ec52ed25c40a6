"""AutoAttack (Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", https://arxiv.org/abs/2003.01690): a fixed sequence of attacks, each on what the earlier ones
left. The composition of each version is that of the reference, https://github.com/fra31/auto-attack.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from paretune.attacks.apgd import APGD
from paretune.attacks.autoattack_state import Journal, digest
from paretune.attacks.base import Attack, Call, attacking
from paretune.attacks.copy.engine import AttackCopy, attack_copy
from paretune.attacks.ensemble import AutoAttackResult, AutoAttackStatus, Ensemble
from paretune.attacks.fab import FAB
from paretune.attacks.search import SearchAttack
from paretune.attacks.square import Square
from paretune.attacks.state import PROBED, claimed
from paretune.attacks.threats import L1

BATCH = 128  # images at once

Version = Literal["standard", "plus", "rand", "standard-3", "standard-2", "plus-3", "plus-2", "rand-2"]


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The ensemble whose result is comparable between papers, and parameter-free with its defaults.

    ========== ==============================================================================================
    version    attacks, the cheapest first
    ========== ==============================================================================================
    standard   APGD-CE, targeted APGD-DLR, targeted FAB, Square
    plus       APGD-CE and APGD-DLR with 5 restarts, targeted APGD-DLR, targeted FAB, FAB with 5 restarts, Square
    rand       APGD-CE and APGD-DLR, each gradient averaged over 20 passes: for models that draw random numbers
    ========== ==============================================================================================

    Under L1, APGD-CE makes 5 restarts and targeted APGD tries 5 classes at most, as in the reference.

    The targeted DLR loss is defined from 4 classes on, the DLR loss from 3 on. The reference has no version for fewer and
    breaks off; what its attacks can do there, as its version "custom", is APGD-CE, FAB and Square. So on such models a
    version runs as a variant, which :meth:`~paretune.attacks.Attack.on` names and the rows of an evaluation show: the
    same sequence without the attacks that are not defined, and with APGD-DLR in the place of targeted APGD-DLR where it is.

    ========== ==============================================================================================
    variant    attacks
    ========== ==============================================================================================
    standard-3 APGD-CE, APGD-DLR, targeted FAB, Square
    standard-2 APGD-CE, targeted FAB, Square
    plus-3     APGD-CE and APGD-DLR with 5 restarts, targeted FAB, FAB with 5 restarts, Square
    plus-2     APGD-CE with 5 restarts, targeted FAB, FAB with 5 restarts, Square
    rand-2     APGD-CE, each gradient averaged over 20 passes
    ========== ==============================================================================================

    Example:
        >>> from paretune.attacks import AutoAttack, Linf
        >>> attack = AutoAttack(Linf(8 / 255))
        >>> result = attack.run(model, images, labels, state="aa-state")  # doctest: +SKIP
        >>> [(stage.name, stage.robust) for stage in result.stages]  # doctest: +SKIP

    Args:
        threat: Linf, L2 or L1.
        version: ``"standard"``, ``"plus"`` or ``"rand"``; or a variant, for models with that many classes only.
        steps: of APGD and FAB; 100 is the published setting.
        queries: of Square; 5000 is the published setting.
        targets: wrong classes that the targeted attacks try, the likeliest first; 9 is the published setting.

    Raises:
        TypeError: ``threat`` is not Linf, L2 or L1.
        ValueError: a field is out of range; or, when called, the version is the variant for another number of classes,
            or minus infinity rules out classes so that too few are left for its losses.
    """

    portion: ClassVar[int] = 8  # so that a stage refills its batches with what the one before has left
    _: KW_ONLY
    version: Version = "standard"
    steps: int = 100
    queries: int = 5000
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "queries", "targets")
        self.stages()  # which check the threat

    def on(self, classes: int) -> Self:
        """The attack as it runs on a model with this many classes: itself from 4 on, else a variant.

        Raises:
            ValueError: it is the variant for another number.
        """
        version, _, few = self.version.partition("-")
        if few and int(few) != classes:
            raise ValueError(
                f"AutoAttack: version={self.version!r} is for models with {few} classes, got {classes}; use "
                f"version={version!r}, which follows the model"
            )
        variant: Any = f"{version}-{classes}"
        return replace(self, version=variant) if variant in get_args(Version) else self

    def stages(self) -> dict[str, SearchAttack]:
        """The attacks of the sequence by name."""
        threat, steps = self.threat, self.steps
        version, _, few = self.version.partition("-")
        sparse, plus = isinstance(threat, L1), version == "plus"
        eot, restarts = (20, 1) if version == "rand" else (1, 5 if sparse or plus else 1)
        stages: dict[str, SearchAttack] = {"apgd-ce": APGD(threat, steps=steps, restarts=restarts, eot=eot)}
        if few != "2" and (few or version != "standard"):
            stages["apgd-dlr"] = APGD(threat, loss="dlr", steps=steps, restarts=5 if plus else 1, eot=eot)
        if version == "rand":
            return stages
        if not few:
            apgd_targets = min(self.targets, 5) if sparse and not plus else self.targets
            stages["apgd-t"] = APGD(threat, loss="dlr-targeted", steps=steps, targets=apgd_targets)
        stages["fab-t"] = FAB(threat, steps=steps, targets=self.targets)
        if plus:
            stages["fab"] = FAB(threat, steps=steps, targets=None, restarts=5)
        stages["square"] = Square(threat, queries=self.queries)
        return stages

    def passes(self, classes: int) -> int:
        """See :meth:`~paretune.attacks.base.Attack.passes`."""
        return sum(attack.passes(classes) for attack in self.on(classes).stages().values())

    def on_set(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        *,
        progress: Callable[[float, str], None] = lambda _fraction, _note: None,
        **options: Any,
    ) -> Tensor:
        """The images of :meth:`run`; see :meth:`~paretune.attacks.base.Attack.on_set`."""

        def told(status: AutoAttackStatus) -> None:
            progress(status.passes / status.total, f"AutoAttack  {status}")

        return self.run(model, images, labels, progress=told, **options).images

    def for_training(self) -> Attack:
        """There is no such form; see :meth:`~paretune.attacks.base.Attack.for_training`."""
        raise ValueError(f"{self!r} stops at the first success; train with PGD, APGD or FGSM")

    def perturb(self, call: Call) -> Tensor:
        """The images of :meth:`run` as it is by default."""
        return self._ensemble(call, BATCH).run(None, look_for_noise=self.version != "rand").images

    def run(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        batch_size: int = BATCH,
        progress: bool | Callable[[AutoAttackStatus], None] = False,
        state: str | Path | None = None,
        places: Tensor | None = None,
    ) -> AutoAttackResult:
        """Attack a whole set.

        What an image draws depends on ``seed`` and on its place in the set only, so neither the batch size nor the
        fate of other images changes its answer, up to the rounding of the model.

        Args:
            model: see :meth:`~paretune.attacks.base.Attack.__call__`.
            images: (images, channels, height, width) in [0, 1].
            labels: true classes (images,).
            seed: seeds all randomness.
            batch_size: images at once; each stage fills its batches with what is left.
            progress: True for a bar with the time left on standard error; or what to call with an
                :class:`AutoAttackStatus` after each pass.
            state: a directory to keep finished batches in. A run that was killed continues there with the same
                call, and its result is that of an uninterrupted run.
            places: (images,) whole numbers: where the images are in a larger set, of which these are a part. They draw
                the same numbers then as in a run on the whole set. None for 0, 1, 2, …

        Raises:
            TypeError, ValueError: see :meth:`~paretune.attacks.base.Attack.__call__`; or ``state`` belongs to another
                run, or ``places`` are not one for each image.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if isinstance(model, nn.Module) and state is not None:
            # The first run may have chosen its precision by the clock; a continued one must not choose again.
            precision = Journal.precision(state)
            model = attack_copy(model) if precision is None else attack_copy(model, precision=precision)
        with attacking(model, images, labels, seed, places) as call:
            if call.images.numel() == 0:
                nothing = torch.zeros_like(call.goals, dtype=torch.bool)
                return AutoAttackResult(call.images.clone(), nothing, nothing, (), ())
            ensemble = self._ensemble(call, batch_size)
            noise = self.version != "rand"
            if state is None:
                return ensemble.run(None, progress, look_for_noise=noise)
            plan = {
                "attack": self.to_dict(),
                "seed": seed,
                "batch_size": batch_size,
                "images": digest(call.images, call.goals, call.streams.places),
            }
            with claimed(state, plan, ensemble.clean[:PROBED].cpu()):
                return ensemble.run(Journal(state), progress, look_for_noise=noise)

    def _ensemble(self, call: Call, batch_size: int) -> Ensemble:
        return Ensemble(lambda classes: self.on(classes).stages(), call, batch_size)
