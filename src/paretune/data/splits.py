"""Which example trains, which one helps to choose, which one is reported: stratified, seeded, disjoint."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

ROLES = ("train", "select", "report")

# Every interval of a report rests on the report split, so it gets the larger share of what is not trained on:
# about 450 of the 1,797 digits, a standard error of 2.4 points at worst. The select split only ranks
# checkpoints; its noise can make the choice slightly worse, but does not bias what is reported.
SPLITS = (0.6, 0.15, 0.25)

Rows = npt.NDArray[np.int64]
Pools = tuple[tuple[range, tuple[str, ...]], ...]  # consecutive rows and the roles that share them


def pools_of(sizes: Mapping[str, int]) -> Pools:
    """Pools for parts that lie one after the other, given the number of examples by role.

    The training part also serves the roles that have no part of their own. Where only a validation part
    exists (ImageNet), it is the official test of the data set and becomes the report split.
    """
    if "select" in sizes and "report" not in sizes:
        sizes = {"report" if role == "select" else role: size for role, size in sizes.items()}
    pools: list[tuple[range, tuple[str, ...]]] = []
    start = 0
    for role, size in sizes.items():
        shared = [other for other in ROLES if other not in sizes] if role == "train" else []
        pools.append((range(start, start + size), (role, *shared)))
        start += size
    return tuple(pools)


def split_rows(
    labels: Rows,
    pools: Pools,
    *,
    num_classes: int,
    seed: int,
    limit: int | None,
    shares: Sequence[float],
    groups: Rows | None = None,
) -> dict[str, Rows]:
    """Rows of each split, in a random order.

    scikit-learn's ``train_test_split(stratify=)`` would not do: it may leave a rare class out of a split,
    refuses limits just below the whole, and does not promise the same split in its next version.

    Args:
        labels: Class of each example, shape (examples,). Each pool holds every class at least once per role.
        pools: Which rows are shared among which roles.
        num_classes: Number of classes.
        seed: Decides what goes where in pools with several roles.
        limit: Number of rows to keep over all splits, in proportion to ``shares`` as far as splits reach. It
            takes rows away and moves none to another split.
        shares: Share of each of ``ROLES``; in a pool with fewer roles they share in proportion.
        groups: Number of the group of each example, shape (examples,). What is in one group goes to one split, so
            that splits hold their share of each class as nearly as groups let them.

    Raises:
        ValueError: ``limit`` cannot keep one example of each class in each split, or the groups cannot.
    """
    cells: dict[str, list[Rows]] = {role: [] for role in ROLES}  # the rows of each class, in random order
    position = np.empty(len(labels), np.int64)  # place of each row in the random order
    for pool, roles in pools:
        # What the source decided keeps one order for all seeds, so that its report split is one and the same.
        order = pool.start + _permutation(len(pool), seed if len(roles) > 1 else 0)
        position[order] = np.arange(len(order))
        by_class = order[np.argsort(labels[order], kind="stable")]
        counts = np.bincount(labels[order], minlength=num_classes)
        wanted_shares = [shares[ROLES.index(role)] for role in roles]
        if groups is not None:
            role_of = _grouped(labels[by_class], groups[by_class], counts, wanted_shares)
        for members in np.split(by_class, np.cumsum(counts)[:-1]):
            if groups is not None:
                parts = [members[role_of[groups[members]] == number] for number in range(len(roles))]
            else:
                parts = np.split(members, np.cumsum(apportion(wanted_shares, len(members)))[:-1])
            for role, part in zip(roles, parts, strict=True):
                cells[role].append(part)
    if limit is not None and limit < len(labels):
        if limit < len(ROLES) * num_classes:
            raise ValueError(
                f"limit={limit} cannot keep one example of each of {num_classes} classes in each of "
                f"{len(ROLES)} splits; it must be at least {len(ROLES) * num_classes}"
            )
        available = np.array([[len(part) for part in cells[role]] for role in ROLES])  # (roles, classes)
        wanted = np.asarray(shares)[:, None] * available / available.sum(1, keepdims=True)
        keep = iter(apportion(wanted.ravel(), limit, capacity=available.ravel()))
        cells = {role: [part[: next(keep)] for part in parts] for role, parts in cells.items()}
    rows = {role: np.concatenate(parts) for role, parts in cells.items()}
    return {role: part[np.argsort(position[part])] for role, part in rows.items()}


def sample_rows(labels: Rows, most: int | None, seed: int = 0) -> Rows:
    """At most ``most`` rows in a random order that is the same for one seed: of each class its share, and at least one.

    Args:
        labels: Class of each example, shape (examples,).
        most: Rows to keep; None for all.
        seed: Of the order.
    """
    order = _permutation(len(labels), seed)
    if most is None or most >= len(labels):
        return order
    present, counts = np.unique(labels, return_counts=True)
    shares = apportion(counts, max(most, len(present)), capacity=counts)
    kept = np.zeros(len(labels), np.bool_)  # of the places in the order
    for label, share in zip(present, shares, strict=True):
        kept[np.flatnonzero(labels[order] == label)[:share]] = True
    return order[kept]


def _grouped(labels: Rows, groups: Rows, counts: Rows, shares: Sequence[float]) -> Rows:
    """Number of the role of each group, indexed by the number of the group.

    Large groups choose first, each the role that lacks most of what it has. The last groups of a class go where it is
    missing.

    Raises:
        ValueError: A class has too few groups for the roles.
    """
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    table = np.zeros((len(first), len(counts)))  # examples by group and class
    np.add.at(table, (members, labels), 1)
    lacking = np.outer(np.asarray(shares) / np.sum(shares), counts)  # examples by role and class
    missing = np.full(lacking.shape, True)
    remaining = (table > 0).sum(0)
    role_of = np.full(int(groups.max()) + 1, -1)
    for group in np.lexsort((first, -table.sum(1))):  # of equal size, in the random order
        has = table[group] > 0
        urgent = missing & (has & (remaining <= missing.sum(0)))
        allowed = urgent.any(1) if urgent.any() else np.full(len(shares), True)
        role = int(np.where(allowed, lacking @ table[group], -np.inf).argmax())
        role_of[groups[first[group]]] = role
        lacking[role] -= table[group]
        missing[role] &= ~has
        remaining -= has
    if missing.any():
        role, label = (int(axis[0]) for axis in np.nonzero(missing))
        raise ValueError(
            f"the class with label {label} has {int((table[:, label] > 0).sum())} groups, too few or too large for "
            f"{len(shares)} splits that each hold all classes; split by hand, with a column of splits"
        )
    return role_of


def apportion(shares: npt.ArrayLike, total: int, capacity: npt.NDArray[np.int64] | None = None) -> list[int]:
    """Whole numbers in proportion to ``shares`` that sum to ``total``, at least 1 each: largest remainders.

    They lie within 1 of the exact proportion, except where small ones are lifted to 1 at the cost of others.
    Of equal remainders the last wins (the report split). Numbers that reach their ``capacity`` stop there,
    and the others share what is left over.

    Raises:
        ValueError: ``total`` is less than the number of shares, or more than the capacity.
    """
    weights = np.asarray(shares, np.float64)
    room = np.full(len(weights), total) if capacity is None else capacity
    if not len(weights) <= total <= room.sum():
        raise ValueError(
            f"total={total} must lie between {len(weights)} shares and a capacity of {room.sum()}"
        )
    exact = weights / weights.sum() * total
    full = np.zeros(len(weights), np.bool_)
    while (over := exact > room).any():
        full |= over
        exact[full] = room[full]
        exact[~full] = weights[~full] / weights[~full].sum() * (total - room[full].sum())
    counts = np.maximum(np.floor(exact + 1e-9).astype(np.int64), 1)
    while (missing := total - int(counts.sum())) != 0:
        behind = np.round(exact - counts, 9)
        if missing > 0:
            behind[counts >= room] = -np.inf
            counts[np.flatnonzero(behind == behind.max())[-1]] += 1
        else:
            behind[counts == 1] = np.inf
            counts[behind.argmin()] -= 1
    return [int(count) for count in counts]


def _permutation(length: int, seed: int) -> Rows:
    """A random order for good: NumPy freezes the raw stream of a bit generator, but not ``permutation``."""
    return np.argsort(np.random.Philox(seed).random_raw(length), kind="stable")
