"""Statistics of batch norms taken from images, for networks whose weights come without any."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch

from paretune.backbones.backbone import Backbone
from paretune.backbones.modes import batch_norms, modes_kept
from paretune.data.image_split import ImageSplit
from paretune.strategies.mechanics.adapting import require_bare


def calibrate_batchnorm(
    backbone: Backbone, split: ImageSplit, *, images: int = 512, batch_size: int = 64
) -> Backbone:
    """Give each batch norm of ``backbone`` the mean and variance of what it gets from ``split``, in place.

    For a network of random weights that shall train with ``bn="frozen"``. Adapter files belong to the calibrated network.

    Args:
        backbone: without an adapter; the same object is returned.
        split: ``data.train``.
        images: how many of it to use, from the first on; what fills no batch is left out.
        batch_size: images normalised together.

    Raises:
        ValueError: the backbone carries an adapter or has no batch norm with statistics, or fewer than two images are given.
    """
    require_bare(backbone)
    every: Iterable[Any] = batch_norms(backbone).values()
    norms = [norm for norm in every if norm.running_mean is not None]
    count = min(images, len(split))
    batch_size = min(batch_size, count)
    if not norms or batch_size < 2:
        raise ValueError(
            f"calibrate_batchnorm needs batch norms with statistics and at least two images at once; got {len(norms)} "
            f"norms, {count} images and batch_size={batch_size}"
        )
    device = backbone.mean.device
    with modes_kept(backbone), torch.no_grad(), contextlib.ExitStack() as stack:
        backbone.eval()
        for norm in norms:
            stack.callback(setattr, norm, "momentum", norm.momentum)
            norm.reset_running_stats()
            norm.momentum = None  # the average of all batches
            norm.train()
        for stop in range(batch_size, count + 1, batch_size):
            backbone(split[stop - batch_size : stop][0].to(device))
    backbone.published = False
    return backbone
