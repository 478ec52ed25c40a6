"""Clean and robust correctness of a model, example by example."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paretune.attacks import Attack, AttackCopy, attack_copy
from paretune.data import ImageSplit
from paretune.progress import bars

log = logging.getLogger(__name__)

Bits = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scores:
    """Which examples a model gets right.

    Args:
        clean: (examples,) booleans, right on the clean image.
        robust: for each attack (examples,) booleans, right on the clean and on the attacked image.
        split: fingerprint of the examples.
    """

    clean: Bits
    robust: dict[Attack, Bits]
    split: str

    @property
    def clean_accuracy(self) -> float:
        """Fraction right on clean images."""
        return float(self.clean.mean())

    def robust_accuracy(self, attack: Attack) -> float:
        """Fraction right on clean and attacked images; an upper bound on the true one."""
        return float(self.robust[attack].mean())

    def to_frame(self) -> pd.DataFrame:
        """One row per attack: attack, threat, epsilon, clean, robust, examples."""
        return pd.DataFrame(
            [
                {
                    "attack": repr(attack),
                    "threat": type(attack.threat).__name__,
                    "epsilon": attack.threat.epsilon,
                    "clean": self.clean_accuracy,
                    "robust": self.robust_accuracy(attack),
                    "examples": len(self.clean),
                }
                for attack in self.robust
            ],
            columns=["attack", "threat", "epsilon", "clean", "robust", "examples"],
        )


def evaluate(
    model: nn.Module,
    data: ImageSplit,
    attacks: Sequence[Attack] = (),
    *,
    epsilons: Sequence[float] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    victim: AttackCopy | None = None,
    progress: bool = False,
) -> Scores:
    """Measure ``model`` on every example of ``data``: clean, and under each attack.

    The attack searches on a copy made for speed; every answer that counts is given by ``model`` itself, in evaluation
    mode. The model is left as it was.

    Args:
        model: a classifier of images in [0, 1].
        data: for example ``load_data("digits").report``.
        attacks: for example ``[PGD(Linf(4/255), steps=20)]``.
        epsilons: evaluate each attack at each of these instead of at its own.
        batch_size: images at once.
        seed: seeds the attacks; the same seed gives the same bits.
        shard: (rank, world): only every world-th batch from rank on; the other bits are False, so that the bits of
            all ranks add up.
        victim: attack copy of ``model`` as it is now, to search on; made when None. Give one to choose its precision, as
            ``attack_copy(model, precision="auto")`` does, or to evaluate often.
        progress: show a bar with the time left on the terminal.

    Raises:
        TypeError: something in ``attacks`` is not an attack.
        ValueError: ``data`` is empty, two attacks are the same, or one leaves its ball by design.
    """
    if len(data) == 0:
        raise ValueError("data has no examples")
    if epsilons is not None:
        attacks = [attack.with_epsilon(epsilon) for attack in attacks for epsilon in epsilons]
    if len(set(attacks)) < len(attacks):
        raise ValueError(f"two attacks are the same: {', '.join(map(repr, attacks))}")
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks must hold attacks such as PGD(Linf(4/255)), got {attack!r}")
        if not attack.in_ball:
            raise ValueError(
                f"{attack!r} leaves its ball by design: train with it, and evaluate with PGD or AutoAttack"
            )
    modes = [(part, part.training) for part in model.modules()]
    clean = np.zeros(len(data), dtype=bool)
    robust = {attack: np.zeros(len(data), dtype=bool) for attack in attacks}
    device = next(model.parameters()).device
    if victim is None and attacks:
        victim = attack_copy(model)
    model.eval()
    rank, world = shard
    try:
        with bars(enabled=progress) as shown:
            task = shown.add_task("evaluate", total=len(data) * max(1, len(attacks)), note="")
            for number, start in enumerate(range(0, len(data), batch_size)):
                if number % world != rank:
                    continue
                positions = torch.arange(start, min(start + batch_size, len(data)))
                images, labels = (part.to(device) for part in data[positions])
                right = _right(model, images, labels)
                clean[start : start + batch_size] = right.cpu().numpy()
                for attack in attacks:
                    shown.update(task, note=repr(attack))
                    # An example that is wrong when clean is not robust; only the others are attacked.
                    if victim is not None and right.any():
                        attacked = attack(victim, images[right], labels[right], seed=seed * 1_000_003 + start)
                        survived = torch.zeros_like(right)
                        survived[right] = _right(model, attacked, labels[right])
                        robust[attack][start : start + batch_size] = survived.cpu().numpy()
                    shown.advance(task, len(positions))
    finally:
        for part, training in modes:
            part.training = training
    return Scores(clean, robust, data.fingerprint)


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(images)
    logits = logits if isinstance(logits, Tensor) else logits.logits
    right: Tensor = logits.argmax(1) == labels
    return right
