"""An image that a network is tried on while hooks look on."""

from collections.abc import Iterable

from torch import nn
from torch.utils.hooks import RemovableHandle

from paretune.backbones.passing import one_pass, ramp_image
from paretune.strategies.mechanics.base import Anatomy


def show_an_image(
    module: nn.Module, anatomy: Anatomy, hooks: Iterable[RemovableHandle], strategy: str, why: str
) -> None:
    """Run ``module`` on one image, and take ``hooks`` off.

    Args:
        module: the network.
        anatomy: of it.
        hooks: that are on it for this image alone.
        strategy: that needs it, for the error.
        why: it does, such as ``"which shows the layers that it calls"``.

    Raises:
        ValueError: the network fails, or the size of its images is unknown.
    """
    try:
        if anatomy.image_size is None:
            raise ValueError("the size of its images is unknown")
        one_pass(module, ramp_image(module, anatomy.channels, anatomy.image_size))
    except Exception as error:  # whatever a model raises
        raise ValueError(
            f"{strategy}: {type(module).__name__} must run on an image, {why} ({' '.join(str(error).split())[:200]}); "
            "say the size: Backbone(module, image_size=...)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
