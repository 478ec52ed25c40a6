"""The field ``where`` of every strategy: which part of the model it acts on."""

import fnmatch
from collections.abc import Callable, Sequence

from torch import nn

from paretune.backbones.backbone import inside
from paretune.backbones.sites import Site, candidates

EVERYWHERE = ("all",)
# Whether a term includes a module or parameter of this name, or this site when one is given.
Term = Callable[[str, Site | None], bool]


def check_where(where: object) -> tuple[str, ...]:
    """``where`` as a tuple of entries.

    Raises:
        ValueError: it is empty, or has an entry that cannot mean anything.
    """
    entries = (where,) if isinstance(where, str) else tuple(where) if isinstance(where, Sequence) else ()
    if not entries or not all(isinstance(entry, str) and entry.strip() for entry in entries):
        raise ValueError(
            f"where must be 'all', 'attention', 'mlp', 'first:N', 'last:N' or patterns; got {where!r}"
        )
    for entry in entries:
        for term in _terms(entry):
            kind, _, count = term.partition(":")
            if kind in ("first", "last") and not (count.isdecimal() and int(count) > 0):
                raise ValueError(
                    f"where: {term!r} must name a number of blocks of at least 1, such as 'last:4'"
                )
    return entries


class Selection:
    """What the entries of ``where`` include in one model.

    An entry is a term, or several joined by ``&`` of which each must hold; a name is included if one entry includes it.
    Terms: ``all``; ``attention`` and ``mlp``, the parts of the residual branches; ``first:N`` and ``last:N``, that many
    residual blocks; or a glob pattern of full names of modules or parameters.

    Raises:
        ValueError: a term matches nothing in ``module``.
    """

    def __init__(self, where: Sequence[str], module: nn.Module, sites: Sequence[Site]) -> None:
        self.where = tuple(where)
        self._entries = [[_read(term, module, sites) for term in _terms(entry)] for entry in where]
        parts = dict(module.named_modules(remove_duplicate=False))
        self._places = {
            site.module: [name for name, part in parts.items() if part is parts.get(site.module)]
            for site in sites
        }

    def __call__(self, name: str) -> bool:
        """Whether the module or parameter ``name`` is included."""
        return any(all(term(name, None) for term in entry) for entry in self._entries)

    def site(self, site: Site) -> bool:
        """Whether the branch that ends at ``site`` is included."""
        names = self._places[site.module]
        return any(all(term(name, site) for term in entry) for entry in self._entries for name in names)


def blocks(sites: Sequence[Site]) -> list[str]:
    """Names of the residual blocks, in forward order."""
    return list(dict.fromkeys(site.block or site.module for site in sites))


def _terms(entry: str) -> list[str]:
    return [term.strip() for term in entry.split("&")]


def _read(term: str, module: nn.Module, sites: Sequence[Site]) -> Term:
    kind, _, count = term.partition(":")
    if term == "all":
        return lambda name, site: True
    if term in ("attention", "mlp"):
        bodies = [site.body for site in sites if site.branch == term and site.body]
        if not bodies:
            raise ValueError(
                f"where: no {term} branch is known in {type(module).__name__}; use a pattern; {candidates(module)}"
            )
        return lambda name, site: site.branch == term if site else any(inside(name, body) for body in bodies)
    if kind in ("first", "last") and count.isdecimal():
        known = blocks(sites)
        if int(count) > len(known):
            raise ValueError(
                f"where: {term!r} asks for more residual blocks than the {len(known)} known in "
                f"{type(module).__name__}; use a pattern; {candidates(module)}"
            )
        chosen = known[: int(count)] if kind == "first" else known[-int(count) :]
        return lambda name, site: any(inside(name, block) for block in chosen)
    # What stands at several places has several names.
    modules, parameters = (
        named(remove_duplicate=False) for named in (module.named_modules, module.named_parameters)
    )
    names = [name for name, _ in (*modules, *parameters)]
    if not any(_matches(name, term) for name in names):
        raise ValueError(f"where: pattern {term!r} matches no module or parameter; {candidates(module)}")
    return lambda name, site: _matches(name, term)


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern fits the name, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
