"""One model that several processes train in shards: gradients, optimizer states and the weights that training moves.

Every process keeps the model whole too, in float32, because attacks, measurements and files need it so, and processes that
attack do not go in step. What trains is a second module, the learner: what is frozen it shares with the model, what is
trained is divided by FSDP2 (Zhao et al. 2023, https://arxiv.org/abs/2304.11277; ``torch.distributed.fsdp.fully_shard``),
and after each step the model gets the whole of it. With N processes a trained parameter takes, beside the attacked copy,
4 + 16 / N bytes under AdamW instead of 16, and a frozen one 4 as ever.
"""

import copy
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paretune.backbones.backbone import Backbone
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def sharded(model: Backbone, world: int) -> Backbone:
    """The learner of ``model``, of which each of ``world`` processes holds a part; to be called by all of them.

    The layers that are gathered at once are those of the innermost sequences, such as the blocks of a transformer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    record = require_adaptation(model)
    trained = [p for p in trainable_parameters(model).values() if p.requires_grad]
    moved = {id(parameter) for parameter in trained}
    shared = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in moved]
    learner = copy.deepcopy(model, {id(record): record} | {id(tensor): tensor for tensor in shared})
    for parameter in trainable_parameters(learner).values():
        parameter.data = parameter.data.contiguous()  # as FSDP2 divides them
    frozen = {tensor for tensor in shared if isinstance(tensor, nn.Parameter)}
    mesh = init_device_mesh(trained[0].device.type, (world,))
    mesh._pg_registry.clear()  # torch's caches keep the mesh to the end, which must not keep the threads of the group
    uses = [name for name, p in learner.named_parameters(remove_duplicate=False) if p.requires_grad]
    alone = len(uses) == len(trained)  # a parameter that layers share must be gathered for all of them
    for part in (*(_layers(learner) if alone else ()), learner):
        fully_shard(part, mesh=mesh, ignored_params=frozen)
    return learner


def _layers(learner: nn.Module) -> Iterator[nn.Module]:
    """What sequences consist of and has parameters, the inner before the outer."""
    for part in reversed([*learner.modules()]):
        if isinstance(part, nn.Sequential | nn.ModuleList) and not isinstance(
            part, parametrize.ParametrizationList
        ):
            yield from (
                layer
                for layer in part
                if not isinstance(layer, nn.ModuleList) and any(p.requires_grad for p in layer.parameters())
            )


def _in_shards(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether processes hold it in shards. What makes shards takes a second to import, and is not where there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that processes may hold in shards; they call it together then."""
    return tensor.full_tensor() if _in_shards(tensor) else tensor


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Of a whole ``tensor`` the shard that ``other`` has; all of it if that is whole, or of another shape as counts are."""
    if not _in_shards(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(other.device)
    return distribute_tensor(placed, other.device_mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def give(model: Backbone, learner: Backbone) -> None:
    """Give the learner the weights of the model."""
    for tensor, shard in _pairs(model, learner):
        shard.copy_(part_like(tensor, shard))


@torch.no_grad()
def take(model: Backbone, learner: Backbone) -> None:
    """Give the model the weights of the learner."""
    for tensor, shard in _pairs(model, learner):
        tensor.copy_(whole(shard))


def _pairs(model: Backbone, learner: Backbone) -> Iterator[tuple[Tensor, Tensor]]:
    if learner is not model:
        moved = trainable_parameters(learner)
        yield from (
            (tensor, moved[name])
            for name, tensor in trainable_parameters(model).items()
            if tensor is not moved[name]
        )


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer, by the number of the parameter and the name; all processes call it together."""
    return {
        f"{index}/{name}": whole(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take back what :func:`whole_state` has given."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for place, value in tensors.items():
        index, _, name = place.partition("/")
        state.setdefault(int(index), {})[name] = part_like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
