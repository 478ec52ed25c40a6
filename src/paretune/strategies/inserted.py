"""Whether a model runs as before around what was inserted into it: some go through their children, or count them."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import logits_of
from paretune.backbones.passing import one_pass, ramp_image
from paretune.backbones.random import borrowed_randomness
from paretune.strategies.mechanics.base import Anatomy, Inserted


def check_undisturbed(module: nn.Module, anatomy: Anatomy) -> None:
    """Raise ValueError if ``module`` runs inserted modules itself, or computes something else because it holds them.

    One image shows it, with their hooks taken off. A module without values, whose image size is unknown, or that fails
    without them too is not tried.
    """
    added = {name: part for name, part in module.named_modules() if isinstance(part, Inserted)}
    if not added or anatomy.image_size is None or next(module.parameters()).is_meta:
        return
    image = ramp_image(module, anatomy.channels, anatomy.image_size)
    ran: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name, part in added.items():
            for inner in part.modules():
                hook = inner.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
                hooks.enter_context(hook)
        expected = _logits(module, image, Inserted.detach_all(module))
        if expected is None:
            return
        unhooked = _logits(module, image, Inserted.detach_all(module, hooks_only=True))
    same = unhooked is not None and torch.allclose(unhooked, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    if ran or not same:
        place = f"at {next(iter(ran or added)).rpartition('.')[0]!r}"
        what = "runs what is inserted" if ran else "changes as soon as something is held"
        raise ValueError(
            f"{type(module).__name__} {what} {place}, as a module does that goes through its children or counts them; write "
            "it as an nn.Sequential, or name other places with Backbone(module, sites=...), such as a layer inside it"
        )


def _logits(module: nn.Module, image: Tensor, put_back: Callable[[], None]) -> Tensor | None:
    """What ``module`` answers; None if it fails. ``put_back`` is called in any case."""
    try:
        with borrowed_randomness():
            torch.manual_seed(0)
            return logits_of(one_pass(module, image))
    except Exception:  # whatever a model raises
        return None
    finally:
        put_back()
