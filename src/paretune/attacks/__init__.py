"""Attacks: the threat, the attack that stays inside it, and the copy of the model that it differentiates."""

from paretune.attacks.engine import AttackCopy, attack_copy
from paretune.attacks.pgd import PGD
from paretune.attacks.threats import L2, THREATS, Linf, Threat

ATTACKS: dict[str, type[PGD]] = {"PGD": PGD}

__all__ = ["ATTACKS", "L2", "PGD", "THREATS", "AttackCopy", "Linf", "Threat", "attack_copy"]
