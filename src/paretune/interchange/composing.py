"""What a foreign file means here: a strategy that trains and computes the same, and its tensors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import inside
from paretune.interchange.patterns import fold
from paretune.strategies import BitFit, FullFineTune, LinearProbe, LoRA, NormTune, Strategy, Union
from paretune.strategies.bitfit import is_bias
from paretune.strategies.normtune import norm_layers


@dataclass
class Imported:
    """What a foreign file means here.

    Args:
        strategy: the one that trains and computes the same.
        tensors: under the names of our own files; the head may be missing.
        through_peft: tensors that only peft knows to put into its own layers.
    """

    strategy: Strategy
    tensors: dict[str, Tensor] = field(default_factory=dict)
    through_peft: dict[str, Tensor] = field(default_factory=dict)


def factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with no larger rank than its shape allows: our LoRA has none."""
    rank, rows, columns = a.shape[0], b.shape[0], a.shape[1]
    if rank <= min(rows, columns):
        return a, b
    if rows <= columns:
        return product(b, a), torch.eye(rows, dtype=a.dtype)
    return torch.eye(columns, dtype=a.dtype), product(b, a)


def product(b: Tensor, a: Tensor) -> Tensor:
    """b a, rounded once."""
    return (b.double() @ a.double()).to(a.dtype)


def lora(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    layers: list[str],
    rslora: bool = False,
    dropout: float = 0.0,
    targets: tuple[str, ...] | None = None,
) -> LoRA:
    """LoRA on exactly the layers of ``ranks``, among ``layers``, those that could be targeted."""
    rank, alpha = (Counter(numbers.values()).most_common(1)[0][0] for numbers in (ranks, alphas))

    def pattern(values: Mapping[str, float], common: float) -> tuple[tuple[str, float], ...]:
        by_value: dict[float, list[str]] = {}
        for name, value in values.items():
            if value != common:
                by_value.setdefault(value, []).append(name)
        return tuple((glob, value) for value, names in by_value.items() for glob in fold(names, ranks))

    where = fold(ranks, layers)
    return LoRA(
        rank=int(rank),
        alpha=None if alpha == rank and not pattern(ranks, rank) and not rslora else alpha,
        targets=targets or where,
        where=where if targets else ("all",),
        rslora=rslora,
        dropout=dropout,
        rank_pattern=pattern(ranks, rank),
        alpha_pattern=pattern(alphas, alpha),
    )


def own_parameters(
    module: nn.Module, head: str, names: list[str], adapted: set[str], origin: str
) -> list[Strategy]:
    """Strategies that train the base's own tensors ``names``: biases, norms, or modules as a whole.

    Raises:
        ValueError: a weight that has an adapter is among them.
    """
    of_norms = {name for name, _ in norm_layers(module)}
    whole = {name.rpartition(".")[0] for name in names if not is_bias(name)}
    if whole & adapted:
        raise ValueError(f"{origin} replaces the weight of {min(whole & adapted)!r} besides adapting it")
    biases = [name for name in names if name.rpartition(".")[0] not in whole]
    modules = [name for name, _ in module.named_modules() if name]
    strategies: list[Strategy] = []
    if norms := whole & of_norms:
        strategies.append(NormTune() if norms == of_norms else NormTune(where=fold(sorted(norms), modules)))
    if others := whole - of_norms:
        strategies.append(FullFineTune(where=fold(sorted(others), modules)))
    if biases:
        every = [name for name, _ in module.named_parameters() if is_bias(name) and not inside(name, head)]
        strategies.append(BitFit() if {*biases} == {*every} else BitFit(where=fold(biases, every)))
    return strategies


def together(strategies: Sequence[Strategy]) -> Strategy:
    """One strategy that does what all of them do; with none, only the head is of interest."""
    return Union(tuple(strategies)) if len(strategies) > 1 else strategies[0] if strategies else LinearProbe()
