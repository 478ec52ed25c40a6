"""What inheritance compares: a way to fine-tune, and what is made of the models that it ends with."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Self

from paretune._values import Value, parse_sums, shown
from paretune.attacks import ATTACKS, THREATS
from paretune.strategies import STRATEGIES, Strategy
from paretune.strategies.peft import Peft
from paretune.training.freezing import FREEZING, Freezing, NoFreezing
from paretune.training.objectives import OBJECTIVES, Objective


@dataclass(frozen=True)
class WiSE(Value):
    """(1 - alpha) of the model before fine-tuning and alpha of the one after, see :func:`paretune.training.wise_ft`.

    Args:
        alpha: in [0, 1]; ImageNet-RIB takes 0.5.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"WiSE: alpha must lie in [0, 1], from the model before to that after; got {self.alpha}"
            )


@dataclass(frozen=True)
class Soup(Value):
    """The uniform mean of the models that methods end with on one task and seed, see :func:`paretune.training.soup`.

    Args:
        of: the methods, each by its text; none are all that train weights which have a mean. They are among those compared.
        pretrained: with the model before fine-tuning, as in ImageNet-RIB.
    """

    of: tuple[str, ...] = ()
    _: KW_ONLY
    pretrained: bool = True

    def __post_init__(self) -> None:
        given: Any = self.of  # one text, as "Soup('LoRA')" gives it, is a soup of one
        object.__setattr__(self, "of", (given,) if isinstance(given, str) else tuple(given))


@dataclass(frozen=True)
class Method(Value):
    """One way to fine-tune; its ``repr`` is the text that :meth:`Methods.read` takes.

    Args:
        strategy: what is trained.
        beside: added to the objective, such as ``EWC()``; one that learns, such as ``TRADES()``, takes its place.
        freezing: what trains when, such as ``LPFT()``.
        wise: the mean with the model before that counts, instead of what training ends with.
    """

    strategy: Strategy
    _: KW_ONLY
    beside: Objective | None = None
    freezing: Freezing = field(default_factory=NoFreezing)
    wise: WiSE | None = None

    def __repr__(self) -> str:
        freezing = None if self.freezing == NoFreezing() else self.freezing
        return " + ".join(
            repr(part) for part in (self.strategy, self.beside, freezing, self.wise) if part is not None
        )

    @property
    def has_mean(self) -> bool:
        """Whether what it trains can be averaged with other models, of which all weights are those of the backbone."""
        return not self.strategy.why_not_mergeable and not isinstance(self.strategy, Peft)


_PARTS: dict[str, type] = {
    **STRATEGIES,
    **OBJECTIVES,
    **ATTACKS,
    **THREATS,
    **FREEZING,
    "WiSE": WiSE,
    "Soup": Soup,
}


class Methods(tuple[Method | Soup, ...]):
    """Several methods; reads ``"FullFineTune, FullFineTune + 100*EWC(), LoRA(rank=4) + LPFT(), Soup()"``.

    A method is a strategy, and after plus signs what is added: to the objective (``L2SP()``, ``EWC()``, ``LwF()``, with a
    weight before it), to the course (``LPFT()``), or after training (``WiSE(0.5)``).
    """

    @classmethod
    def read(cls, value: object) -> Self:
        """From a text, a method, or a list of them.

        Raises:
            ValueError: it names no method, one twice, something else, or a soup of methods that have no mean.
        """
        methods: list[Method | Soup] = []
        several = isinstance(value, Sequence) and not isinstance(value, str)
        for item in value if several and isinstance(value, Sequence) else [value]:
            if isinstance(item, Method | Soup):
                methods.append(item)
            elif isinstance(item, Strategy):
                methods.append(Method(item))
            else:
                methods += _read(str(item))
        if not methods:
            raise ValueError(
                f"{value!r} names nothing; name at least one method, such as FullFineTune + EWC()"
            )
        for method in methods:
            if methods.count(method) > 1:
                raise ValueError(
                    f"methods must name each one once; {method!r} is there {methods.count(method)} times"
                )
        read = cls(methods)
        for method in methods:
            if isinstance(method, Soup):
                read.members(method)
        return read

    @property
    def trained(self) -> tuple[Method, ...]:
        """What is trained, also for what is made of it alone; each once."""
        plain = (_trained(method) for method in self if isinstance(method, Method))
        return tuple(dict.fromkeys(plain))

    def members(self, soup: Soup) -> tuple[Method, ...]:
        """The trained methods of which ``soup`` is the mean.

        Raises:
            ValueError: one is not compared, or has no mean, or fewer than two models are averaged.
        """
        members = tuple(method for method in self.trained if method.has_mean)
        if soup.of:
            members = tuple(method for method in Methods.read(list(soup.of)) if isinstance(method, Method))
            for text, member in zip(soup.of, members, strict=False):
                if member not in self.trained:
                    raise ValueError(
                        f"{soup!r} is of {text!r}, which is not among the methods that train: add it to them"
                    )
                if not member.has_mean:
                    raise ValueError(
                        f"{soup!r}: what {text!r} inserts has no mean with other models; name strategies whose changes "
                        "merge (LoRA, BitFit, full fine-tuning)"
                    )
        if len(members) + soup.pretrained < 2:
            raise ValueError(
                f"{soup!r} is a mean of {len(members)} model{'s' * (len(members) != 1)}; compare methods that have a mean, "
                "such as FullFineTune, FullFineTune + EWC() and FullFineTune + LwF()"
            )
        return members


def labels(methods: Methods) -> dict[Method | Soup, str]:
    """What tables call each: ``FullFineTune + EWC``, ``Soup of 4``."""
    short = {method: short_label(method) for method in methods}
    names = [*short.values()]
    return {method: name if names.count(name) == 1 else repr(method) for method, name in short.items()}


def short_label(method: Method | Soup) -> str:
    """A name, which two soups may have in common."""
    if isinstance(method, Soup):
        of = f" of {len(method.of) + method.pretrained}" if method.of else ""
        return f"Soup{of}{'' if method.pretrained else ' without the model before'}"
    return repr(method).replace("()", "")


def _trained(method: Method) -> Method:
    return Method(method.strategy, beside=method.beside, freezing=method.freezing)


def _read(text: str) -> list[Method | Soup]:
    return [
        terms[0] if len(terms) == 1 and isinstance(terms[0], Soup) else _method(terms, text)
        for terms in parse_sums(text, _PARTS)
    ]


def _method(terms: Sequence[Any], text: str) -> Method:
    strategies = [term for term in terms if isinstance(term, Strategy)]
    objectives = [term for term in terms if isinstance(term, Objective)]
    courses = [term for term in terms if isinstance(term, Freezing)]
    means = [term for term in terms if isinstance(term, WiSE)]
    if strange := [term for term in terms if not isinstance(term, Strategy | Objective | Freezing | WiSE)]:
        raise ValueError(
            f"{strange[0]!r} in {shown(text)} is no part of a method, which is a strategy, and after plus signs objectives, "
            "a course such as LPFT(), or WiSE(); Soup() stands alone"
        )
    if not strategies:
        named = " + ".join(map(repr, terms))
        raise ValueError(
            f"{named} in {shown(text)} names no strategy; begin with one, as in FullFineTune + EWC()"
        )
    for several in ([*courses], [*means]):
        if len(several) > 1:
            raise ValueError(
                f"{several[0]!r} and {several[1]!r} in {shown(text)} exclude each other; leave one"
            )
    return Method(
        functools.reduce(operator.add, strategies),
        beside=functools.reduce(operator.add, objectives) if objectives else None,
        freezing=courses[0] if courses else NoFreezing(),
        wise=means[0] if means else None,
    )
