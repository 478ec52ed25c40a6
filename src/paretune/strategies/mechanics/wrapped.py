"""Layers that peft has put its wrappers around: finding them, taking them off, and checking what they do.

peft is imported only where a model may carry its layers.
"""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import logits_of
from paretune.data.sizes import pair
from paretune.strategies.mechanics.base import Anatomy

# Between logits in float64 of what should be the same function; peft computes some of its weights in float32.
TOLERANCE = 1e-4


def wrapped_layers(module: nn.Module) -> dict[str, Any]:
    """The layers of ``module`` that peft has wrapped, by name."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {}
    for name, part in module.named_modules():
        if isinstance(part, BaseTunerLayer) and not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = part
    return layers


def names_in_peft(module: nn.Module) -> dict[str, str]:
    """For each tensor that peft would save of its layers in ``module``: the name there, without prefix, and here.

    Raises:
        ValueError: it saves something that is no tensor of the model.
    """
    if not wrapped_layers(module):
        return {}
    import peft

    # A shared tensor has several names in the state dict; here it has the first.
    state = module.state_dict(keep_vars=True)
    names = {id(value): name for name, value in reversed(state.items())}
    saved = peft.get_peft_model_state_dict(module, state_dict=state, save_embedding_layers=False)
    beyond = [name for name, value in saved.items() if id(value) not in names]
    if beyond:
        raise ValueError(f"peft saves {beyond[0]}, which is no tensor of the model")
    return {name: names[id(value)] for name, value in saved.items()}


def keep_as_buffers(module: nn.Module) -> None:
    """Make buffers of what peft saves of its layers but has in plain dicts, where no state dict finds it (SHiRA)."""
    import peft
    from peft.tuners._buffer_dict import BufferDict

    state = module.state_dict(keep_vars=True)
    saved = peft.get_peft_model_state_dict(module, state_dict=state, save_embedding_layers=False)
    beyond = {id(value) for value in saved.values()} - {id(value) for value in state.values()}
    for layer in wrapped_layers(module).values() if beyond else ():
        for name, value in list(vars(layer).items()):
            if isinstance(value, dict) and any(id(entry) in beyond for entry in value.values()):
                setattr(layer, name, BufferDict(value, persistent=True))


def unwrap(module: nn.Module, *, merge: bool = False) -> None:
    """Put the layers back in the places of their wrappers, in place; with ``merge`` they take over the difference."""
    for name, wrapper in wrapped_layers(module).items():
        if merge:
            wrapper.merge(safe_merge=True)
        module.set_submodule(name, wrapper.get_base_layer())
        module.__dict__.pop("peft_config", None)


def check_merge(module: nn.Module, anatomy: Anatomy) -> None:
    """Try on a copy whether peft can merge, and merges what it computes.

    Raises:
        ValueError: it cannot, or the merged model would be another function.
    """
    trial = prepared(module)
    images = random_images(trial, anatomy)
    with torch.no_grad():
        expected = logits_of(trial(images)) if images is not None else None
        try:
            unwrap(trial, merge=True)
        except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"peft cannot merge this adapter: {error}; save it with save_adapter") from error
        if images is not None and expected is not None:
            apart = relative_distance(logits_of(trial(images)), expected)
            if apart > TOLERANCE:
                raise ValueError(
                    f"peft merges this adapter wrongly: the logits would differ by {apart:.2g} of the largest; save it with "
                    "save_adapter, or use paretune's LoRA"
                )


def prepared(module: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode in which no parameter is zero throughout.

    A branch that a fresh model switches off would hide whatever happens inside it.
    """
    trial = copy.deepcopy(module).double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            if not parameter.is_meta and not parameter.any() and parameter.numel():
                parameter.copy_(0.1 + torch.rand(parameter.shape, generator=draw).to(parameter.device))
    return trial


def random_images(module: nn.Module, anatomy: Anatomy) -> Tensor | None:
    """Two random images for ``module``; None if it has no values yet or their size is unknown."""
    some = next(module.parameters())
    if anatomy.image_size is None or some.is_meta:
        return None
    draw = torch.Generator().manual_seed(0)
    shape = (2, anatomy.channels, *pair(anatomy.image_size))
    return torch.rand(shape, generator=draw, dtype=torch.float64).to(some.device)


def relative_distance(values: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; infinite where anything is not finite."""
    apart = float((values - expected).abs().max() / expected.abs().max())
    return apart if apart == apart else float("inf")
