"""Related tasks: the domains of a data set, each as a data set of its own; a model learns one and is measured on all."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretune.data.images import ImageData, check_labels, checked_options, one_split
from paretune.data.reading import Reading, _domains, read_source
from paretune.data.sizes import ImageSize, checked_size
from paretune.data.sources import SOURCES, Source
from paretune.data.splits import ROLES, SPLITS, Rows, split_rows


def load_related(
    given: str | Path | Mapping[str, Any] | Any,
    *,
    domains: Sequence[str] | None = None,
    img_size: ImageSize | None = None,
    seed: int = 0,
    limit: int | None = None,
    splits: tuple[float, float, float] = SPLITS,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    root: str | Path | None = None,
) -> dict[str, ImageData]:
    """The domains of a data set, each in three splits of its own, with the classes of all of them.

    Splits are stratified by domain and class. What is of one group, such as one picture drawn in several styles, is in one
    split, whichever the domain: no model has learnt, in the style of its domain, what is reported in another.

    Args:
        given: What :func:`paretune.load_data` takes with ``train_domains``.
        domains: Names of the domains; None for all.
        img_size: As in :func:`paretune.load_data`, and so are the arguments after it.
        seed: Decides which examples go where.
        limit: Number of examples to keep of each domain, over all splits.
        splits: Shares of train, select and report.
        columns: Names of columns of a table.
        skip_bad: Leave out images that cannot be read.
        root: Where relative paths of a table start.

    Raises:
        ValueError: There is no such domain, or fewer than two, a class of a domain has too few images for its splits, or as
            in :func:`paretune.load_data`.
    """
    if isinstance(given, str) and given in SOURCES:
        raise ValueError(
            f"{given!r} is in no domains; give a folder DIR/DOMAIN/CLASS/IMAGE, or a table with a column of them"
        )
    how = Reading(
        train_domains=domains or ("",),
        columns=columns or {},
        root=None if root is None else Path(root),
        skip_bad=skip_bad,
    )
    name, known = _domains(given, how)
    names = [*known] if domains is None else [*domains]
    for domain in names:
        if domain not in known:
            near = difflib.get_close_matches(domain, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{name} has no domain {domain!r}; {hint}Domains: {', '.join(known)}")
    if len({*names}) < 2:
        raise ValueError(
            f"{name}: related tasks are two domains or more, each once; got {', '.join(names) or 'none'}"
        )
    source = read_source(given, replace(how, train_domains=names))
    img_size = checked_options(seed, img_size, limit, splits)
    check_labels(source)
    end = source.pools[-1][0].stop  # behind which are the domains that are not asked for
    domain_of = np.full(end, -1)
    for number, ranges in enumerate(source.domains.values()):
        for rows in ranges:
            domain_of[rows.start : rows.stop] = number
    _check_counts(source, domain_of)
    cells, cell_of = np.unique(
        domain_of * len(source.classes) + source.labels[:end].numpy(), return_inverse=True
    )
    split = split_rows(
        cell_of,
        source.pools,
        num_classes=len(cells),
        seed=seed,
        limit=None if limit is None else limit * len(names),
        shares=splits,
        groups=None if source.groups is None else source.groups[:end].numpy(),
    )
    size = img_size or checked_size("images", source.pixels.shape_of(int(split["train"][0])))
    learnt = dict(zip(names, (source.learnt or "").split(), strict=True))
    related = {}
    for number, domain in enumerate(source.domains):
        train, select, report = (
            one_split(source, torch.from_numpy(split[role][domain_of[split[role]] == number]), img_size, size)
            for role in ROLES
        )
        related[domain] = ImageData(
            f"{name}: {domain}",
            train,
            select,
            report,
            source.classes,
            size,
            learnt=learnt[domain],
            augmentation=source.augmentation,
        )
    return related


def _check_counts(source: Source, domain_of: Rows) -> None:
    """Refuse a domain that has a class in too few images for the splits of a pool."""
    labels = source.labels.numpy()
    for pool, roles in source.pools:
        for number, domain in enumerate(source.domains):
            here = domain_of[pool.start : pool.stop] == number
            counts = np.bincount(labels[pool.start : pool.stop][here], minlength=len(source.classes))
            few = np.flatnonzero((counts > 0) & (counts < len(roles)))
            if len(few):
                raise ValueError(
                    f"the domain {domain!r} of {source.name!r} has {counts[few[0]]} images of the class "
                    f"{source.classes[few[0]]!r} for {' and '.join(roles)}, which need one each; add some, or leave the "
                    "class out of all domains"
                )
