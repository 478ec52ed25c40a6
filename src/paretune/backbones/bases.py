"""Which modules can be the base of a Backbone: wrappers are taken off, and what cannot be trained or attacked is refused."""

from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from paretune.backbones.modes import modes_kept

# Packages and parts of torch whose layers compute with integers.
_QUANTISED: tuple[str, ...] = (
    "bitsandbytes.",
    "torchao.",
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
)
_QUANTISED += ("gptqmodel.", "auto_gptq.", "awq.", "hqq.", "optimum.quanto", "quanto.")


def unwrapped(module: nn.Module) -> nn.Module:
    """``module`` without the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):  # torch.compile
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def check_base(module: nn.Module) -> None:
    """Refuse what a Backbone cannot hold.

    Raises:
        TypeError: it is no module.
        ValueError: it is quantised, an object detector, a TorchScript program, takes more than images, has a compiled part,
            or tensors without a shape, or some without values.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"this {kind} is a TorchScript program, whose layers cannot change; give the module it was made of"
        )
    tensors = (*module.named_parameters(), *module.named_buffers())
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy:
        raise ValueError(f"{lazy} of this {kind} has no shape yet; run the model on one image first")
    if len({tensor.is_meta for _, tensor in tensors}) > 1:
        check_values(module)
    beside = [name for name, value in signature(module.forward).parameters.items() if _is_required(value)][1:]
    if beside:
        raise ValueError(
            f"this {kind} takes {', '.join(beside)} beside images; wrap it in a module that takes images alone"
        )
    quantised = next(_quantised(module), None)
    if quantised:
        raise ValueError(
            f"this {kind} is quantised ({quantised}), so it has no gradient that training or an attack could follow; "
            "load it without quantisation, in float32, float16 or bfloat16"
        )
    if any(part.__module__.startswith("torchvision.models.detection") for part in type(module).__mro__):
        raise ValueError(
            f"{kind} detects objects: it takes a list of images and returns boxes, not logits (batch, classes); give a "
            "classifier, such as its backbone with a head"
        )
    for name, part in module.named_modules():
        if unwrapped(part) is not part:
            raise ValueError(
                f"the part {name!r} of this {kind} is wrapped by torch.compile or DataParallel, which renames its tensors; "
                "give the plain model, and compile the Backbone afterwards"
            )


def _is_required(argument: Parameter) -> bool:
    return argument.default is argument.empty and argument.kind not in (
        argument.VAR_POSITIONAL,
        argument.VAR_KEYWORD,
    )


def _quantised(module: nn.Module) -> Iterator[str]:
    """What shows that ``module`` computes with integers."""
    quantiser = getattr(module, "hf_quantizer", None)
    if quantiser is not None:
        yield f"by the {type(quantiser).__name__} of transformers"
    for name, part in module.named_modules():
        if f"{type(part).__module__}.".startswith(_QUANTISED):
            yield f"{name or 'it'} is a {type(part).__module__}.{type(part).__name__}"
    for name, parameter in module.named_parameters():
        stored = type(parameter.data)
        if stored.__module__.startswith("torchao"):
            yield f"{name} is a {stored.__name__}"
        if parameter.is_quantized or not (parameter.is_floating_point() and parameter.element_size() > 1):
            yield f"{name} is {str(parameter.dtype).removeprefix('torch.')}"


def check_values(module: nn.Module) -> None:
    """Raise ValueError if a tensor of ``module`` has a shape only, as on the meta device."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} of this {type(module).__name__} is on the meta device and has no values; make the model on a real "
                "device and load its weights first"
            )


def heads(module: nn.Module, head: str, logits: Callable[[Any], Tensor], example: Tensor) -> list[str]:
    """The layers whose outputs add up to the logits: ``head``, if it is the one; two in networks with a distilled head.

    Found by moving the output of each layer as wide as the head: only a head's moves the logits in proportion.

    Args:
        module: the network.
        head: dotted name of the classifier.
        logits: the logits (batch, classes) in what the network returns.
        example: an input that the network takes.

    Returns:
        Names; ``head`` alone where no other layer has its width, or where no layer's output shows so in the logits.
    """
    width = len(module.get_submodule(head).weight)  # type: ignore[arg-type]
    layers: dict[str, Any] = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and (name == head or not name.startswith(f"{head}."))
    }
    layers = {name: part for name, part in layers.items() if len(part.weight) == width}
    if len(layers) == 1:
        return [head]
    move = 1 + torch.rand(width, generator=torch.Generator().manual_seed(0)).to(example)
    moving = []
    with modes_kept(module), torch.random.fork_rng(), torch.no_grad():
        module.eval()
        before = logits(module(example))
        for name, part in layers.items():

            def moved(part: nn.Module, _args: Any, output: Tensor) -> Tensor:
                return output + (move.view(-1, 1, 1) if isinstance(part, nn.Conv2d) else move)

            with part.register_forward_hook(moved):
                share = ((logits(module(example)) - before).mean(0) / move).float()
            alike = share.shape == move.shape and torch.allclose(share, share.mean(), rtol=0.02)
            if alike and share.abs().min() > 1e-3:
                moving.append(name)
    return moving or [head]
