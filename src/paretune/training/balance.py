"""Classes of different sizes: weights in the loss, or as many draws of each."""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: What is done about classes of different sizes; see :func:`~paretune.train`.
Balance = Literal["none", "weights", "sampling"]


def check_balance(balance: str) -> None:
    """Raise ValueError unless it is one of the choices."""
    if balance not in get_args(Balance):
        raise ValueError(f"balance must be one of {', '.join(get_args(Balance))}, got {balance!r}")


def example_weights(labels: NDArray[np.int64]) -> Tensor:
    """(examples,) float32: n / (C n_y) for an example whose class y has n_y of the n examples, of C classes that have any.

    Each class has the same total, and the mean is 1. scikit-learn calls the weights "balanced".
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return torch.from_numpy((len(labels) / (len(counts) * counts[inverse])).astype(np.float32))


def balanced_order(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """As many rows as there are ``labels``, in which each class has the same share, up to one row.

    A class that has fewer examples than its share repeats all of them before it repeats one again; of another class, chance
    takes some.
    """
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    share, more = divmod(len(labels), len(classes))
    favoured = generator.permutation(len(classes)) < more
    rows = []
    for members, extra in zip(classes, favoured, strict=True):
        wanted = share + int(extra)
        rounds = [generator.permutation(members) for _ in range(-(-wanted // len(members)))]
        rows.append(np.concatenate(rounds)[:wanted])
    return generator.permutation(np.concatenate(rows))
