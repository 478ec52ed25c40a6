"""Threats, attacks and conditions as people write them."""

import re
from collections.abc import Sequence

from paretune._values import number_text


def epsilon_text(epsilon: float) -> str:
    """``4/255`` where the value is that, else a short decimal."""
    halves = round(2 * 255 * epsilon)
    if abs(halves / 2 / 255 - epsilon) < 1e-6 and abs(round(epsilon, 3) - epsilon) > 1e-9:
        return f"{halves / 2:g}/255"
    return f"{epsilon:.4g}"


def threat_text(threat: str, epsilon: float) -> str:
    """``L∞ ≤ 4/255``."""
    return f"{'L∞' if threat == 'Linf' else threat} ≤ {epsilon_text(epsilon)}"


def as_called(attack: str) -> str:
    """``PGD(Linf(4/255))`` for ``PGD(Linf(0.01568627450980392))``: the same number, as attacks print it now."""
    return re.sub(r"(?<![\w.])\d+\.\d{6,}(?!\w)", lambda match: number_text(float(match[0])), attack)


def attack_text(attack: str) -> str:
    """``PGD(Linf(4/255))`` for ``PGD(Linf(0.01568627450980392))``."""
    return re.sub(r"\d*\.\d{4,}", lambda match: epsilon_text(float(match[0])), attack)


def condition_names(conditions: Sequence[tuple[str, str, float, str]]) -> list[str]:
    """``digits, L∞ ≤ 4/255`` for each (task, threat, epsilon, attack); with the attack where that is not unique."""
    short = [f"{task}, {threat_text(threat, epsilon)}" for task, threat, epsilon, _ in conditions]
    return [
        name if short.count(name) == 1 else f"{name}, {attack_text(attack)}"
        for name, (_, _, _, attack) in zip(short, conditions, strict=True)
    ]
