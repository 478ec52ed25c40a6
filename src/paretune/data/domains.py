"""Data sets in domains, such as photos and sketches of the same classes: some are trained on, the others only measured."""

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from paretune.data.parts import Part, check_apart, in_order, joined, merged
from paretune.data.sources import Source, digest
from paretune.data.splits import ROLES, Rows, sample_rows

logger = logging.getLogger(__name__)


def of_domains(
    name: str,
    readers: Mapping[str, Callable[[], dict[str, Part]]],
    train: Sequence[str],
    classes: Sequence[str] | None,
) -> Source:
    """One source: the domains in ``train`` make its parts by role, and the others are elsewhere.

    Of each other domain its test part is measured, a validation part where it has no other, else all of it.

    Args:
        name: What to call all of it.
        readers: What reads the parts of each domain by role, each with its own classes.
        train: Names of the domains to train on.
        classes: Names of the classes in the order of labels. None takes those of the domains to train on: in the order of
            the one that has all, else sorted.

    Raises:
        ValueError: A domain to train on is not there, a domain has a class that these lack or is split otherwise, or two
            domains share files.
    """
    _check_names(name, readers, train)
    parts = {domain: read() for domain, read in readers.items()}
    check_apart(name, {f"{domain} {role}": part for domain in parts for role, part in parts[domain].items()})
    every = {domain: next(iter(by_role.values())) for domain, by_role in parts.items()}
    for what, answers in (
        ("names its classes", {domain: part.named for domain, part in every.items()}),
        ("has groups", {domain: part.groups is not None for domain, part in every.items()}),
    ):
        if len({*answers.values()}) > 1 and not (what == "names its classes" and classes):
            having, lacking = (
                next(key for key in answers if answers[key] is is_so) for is_so in (True, False)
            )
            raise ValueError(
                f"{name}: the domain {having!r} {what} and {lacking!r} does not; let all do so, or none"
            )
    first, *others = train
    for domain in others:
        if {*parts[domain]} != {*parts[first]}:
            raise ValueError(
                f"{name}: the domain {first!r} has the splits {', '.join(parts[first])}, and {domain!r} "
                f"{', '.join(parts[domain])}; give all domains that are trained on the same ones"
            )
    known = tuple(classes) if classes else _classes([every[domain] for domain in train])
    aligned = {
        domain: {role: _aligned(part, known, domain, name, classes) for role, part in by_role.items()}
        for domain, by_role in parts.items()
    }
    trained = {role: merged({domain: aligned[domain][role] for domain in train}) for role in parts[first]}
    elsewhere = {
        domain: next(by_role[role] for role in ("report", "select", "train") if role in by_role)
        for domain, by_role in aligned.items()
        if domain not in train
    }
    source = joined(name, trained, elsewhere)
    learnt = (digest(repr([*known]), aligned[domain]["train"].content) for domain in train)
    return replace(
        source,
        learnt=" ".join(learnt),  # of each, so that none is taken for new when it is given alone
        domains=_places({role: {domain: aligned[domain][role] for domain in train} for role in trained}),
    )


def elsewhere_rows(
    source: Source, rows_of: Callable[..., Mapping[str, Rows]], most: int | None
) -> Iterator[tuple[str, Tensor]]:
    """Names and rows of what is elsewhere, without the groups that may be trained on or selected by.

    Args:
        source: All examples.
        rows_of: The rows of each split under ``limit``.
        most: Rows to keep of each; None for all.

    Raises:
        ValueError: Nothing is left of one.
    """
    groups, seen = source.groups, torch.empty(0)
    if groups is not None and source.elsewhere:
        whole = rows_of(limit=None)  # so that a limit never lets in what a run with another one has learnt
        seen = groups[torch.from_numpy(np.concatenate([whole["train"], whole["select"]]))]
    for name, numbers in source.elsewhere.items():
        rows = torch.tensor(numbers)
        if groups is not None:
            rows = rows[~torch.isin(groups[rows], seen)]
        if len(rows) < len(numbers):
            logger.warning(
                "%s: %d of the %d images of %s are of groups that are trained on or selected by, and are left out",
                *(source.name, len(numbers) - len(rows), len(numbers), name),
            )
        if len(rows) == 0:
            raise ValueError(
                f"{source.name}: all images of {name!r} are of groups that are trained on or selected by, so that nothing "
                "is left to measure there"
            )
        yield name, rows[torch.from_numpy(sample_rows(source.labels[rows].numpy(), most))]


def _places(parts: Mapping[str, Mapping[str, Part]]) -> dict[str, tuple[range, ...]]:
    """The rows of each domain, of parts by role and domain, as :func:`~paretune.data.parts.joined` puts them."""
    ranges: dict[str, list[range]] = {}
    start = 0
    for role in ROLES:
        for domain, part in parts.get(role, {}).items():
            ranges.setdefault(domain, []).append(range(start, start := start + len(part.labels)))
    return {domain: tuple(rows) for domain, rows in ranges.items()}


def _check_names(name: str, known: Mapping[str, object], train: Sequence[str]) -> None:
    if not train or len({*train}) < len(train):
        raise ValueError(f"train_domains must name at least one domain, each once; got {list(train)}")
    for domain in train:
        if domain not in known:
            near = difflib.get_close_matches(domain, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{name} has no domain {domain!r}; {hint}Domains: {', '.join(known)}")


def _classes(trained: Sequence[Part]) -> tuple[str, ...]:
    union = {class_name for part in trained for class_name in part.classes}
    return next((part.classes for part in trained if union == {*part.classes}), tuple(in_order(union)))


def _aligned(part: Part, known: tuple[str, ...], domain: str, name: str, given: Sequence[str] | None) -> Part:
    """The part with labels that number the classes ``known``."""
    classes = part.classes
    if given and not part.named:  # whose labels are numbers of the given classes
        classes = known[: len(classes)] + classes[len(known) :]
    codes = torch.tensor([known.index(class_name) if class_name in known else -1 for class_name in classes])
    labels = codes[part.labels]
    if (labels < 0).any():
        strange = classes[int(part.labels[labels < 0][0])]
        raise ValueError(
            f"{name}: the domain {domain!r} has the class {strange!r}, which is none of {', '.join(known[:10])}"
            f"{', …' if len(known) > 10 else ''}, the classes that are trained: leave its images out, or train on a domain "
            "that has it"
        )
    return replace(part, classes=known, named=part.named or bool(given), labels=labels)
