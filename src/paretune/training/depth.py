"""How deep in the network each parameter is, counted in residual blocks."""

import contextlib
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paretune.backbones.backbone import Backbone, inside
from paretune.backbones.passing import blank_image, one_pass
from paretune.strategies.mechanics.adapting import anatomy_of


def depths(model: Backbone) -> dict[str, int]:
    """The depth of every parameter of ``model.module``, adapted or not, by name.

    With N residual blocks, as ``where="last:2"`` counts them: 0 for the stem and the embeddings, i for what lies in the i-th
    block (what a strategy has added to it too), N + 1 for the head. What lies between two blocks, such as a downsampling
    layer, belongs to the one that follows; what follows the last block, such as a final norm, to that one. One blank image
    shows the order. A parameter of several blocks (Compacter's shared rule) has the depth of the first of them, because
    a change of it changes the network from there on. One that does not run on an image has depth 0.

    Raises:
        ValueError: no residual block of the model is known.
    """
    module, anatomy = model.module, anatomy_of(model)
    block_at = {site.module: site.block or site.module for site in anatomy.sites}
    blocks = set(block_at.values())
    if not blocks:
        raise ValueError(
            f"no residual blocks are known in {type(module).__name__}, so that its parameters have no depth; name them with "
            "Backbone(module, sites=...)"
        )
    begun: dict[str, None] = {}  # the blocks, in the order in which they begin
    uses = _FirstUses(begun)
    image = blank_image(module, anatomy.channels, model.image_size)
    with contextlib.ExitStack() as hooks:
        for name, block in {**block_at, **{block: block for block in blocks}}.items():
            place = module.get_submodule(name)
            hook = place.register_forward_pre_hook(lambda *_, block=block: begun.setdefault(block))
            hooks.enter_context(hook)
        with uses:
            one_pass(module, image)
    number = {block: index for index, block in enumerate(begun, start=1)}
    depth_of: dict[int, int] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        around = [block for block in number if inside(name, block)]
        if inside(name, anatomy.head):
            depth = len(number) + 1
        elif around:
            depth = number[max(around, key=len)]
        else:
            continue
        depth_of[id(parameter)] = min(depth, depth_of.get(id(parameter), depth))
    before = {key: min(count + 1, len(number)) if count else 0 for key, count in uses.blocks_before.items()}
    return {name: (before | depth_of).get(id(p), 0) for name, p in module.named_parameters()}


class _FirstUses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Counts for each parameter, by its ``id``, the blocks that had ``begun`` when an operation first took it."""

    def __init__(self, begun: dict[str, None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.begun, self.blocks_before = begun, dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what ``func`` takes and run it."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, nn.Parameter):
                self.blocks_before.setdefault(id(value), len(self.begun))
        return func(*args, **(kwargs or {}))
