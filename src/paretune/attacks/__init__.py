"""Attacks: the threat, the attack that stays inside it, and the copy of the model that it differentiates."""

from paretune.attacks.apgd import APGD
from paretune.attacks.autoattack import AutoAttack
from paretune.attacks.base import Attack
from paretune.attacks.copy.engine import AttackCopy, attack_copy
from paretune.attacks.copy.options import Engine
from paretune.attacks.copy.precision import Precision
from paretune.attacks.ensemble import AutoAttackResult, AutoAttackStatus
from paretune.attacks.fab import FAB
from paretune.attacks.fgsm import FGSM, NFGSM
from paretune.attacks.masking import masking_findings
from paretune.attacks.pgd import PGD
from paretune.attacks.square import Square
from paretune.attacks.threats import L1, L2, THREATS, Linf, Threat

#: The attacks by the names that the command line reads.
ATTACKS: dict[str, type[Attack]] = {
    attack.__name__: attack for attack in (PGD, APGD, FAB, Square, AutoAttack, FGSM, NFGSM)
}

__all__ = [
    "APGD",
    "ATTACKS",
    "FAB",
    "FGSM",
    "L1",
    "L2",
    "NFGSM",
    "PGD",
    "THREATS",
    "Attack",
    "AttackCopy",
    "AutoAttack",
    "AutoAttackResult",
    "AutoAttackStatus",
    "Engine",
    "Linf",
    "Precision",
    "Square",
    "Threat",
    "attack_copy",
    "masking_findings",
]
