"""What a strategy of weights does not touch, said once: a projection that it passes by would be missed without a word."""

import logging
import re
from collections.abc import Collection

from torch import nn

from paretune.backbones.backbone import inside
from paretune.strategies.mechanics.base import Delta, Strategy, holders
from paretune.strategies.mechanics.roles import matrices

logger = logging.getLogger(__name__)
# A matrix of an attention module that is no table of positions.
_PROJECTION = re.compile(
    r"att(n|ention)(?!.*(pos|bias|token|rel_|relative|emb|norm|temperature|scale)).*\.(\w*(proj|weight|qkv|kv|kernel)\w*|[wW]?_?[qkvo])$",
    re.IGNORECASE,
)


def log_left_alone(module: nn.Module, strategy: Strategy, trained: Collection[str], head: str) -> None:
    """Say which matrices a strategy of weights leaves as they are; projections that it has no name for are a warning."""
    reached = {*map(id, Delta.originals(module))}
    if not reached:
        return
    reachable = {(matrix.layer, matrix.tensor) for matrix in matrices(module, head).values()}
    left: dict[str, None] = {}
    missed: dict[str, None] = {}
    places = holders(module)
    for name, parameter in module.named_parameters():
        is_matrix = sum(size > 1 for size in parameter.shape) > 1
        untouched = is_matrix and id(parameter) not in reached and not inside(name, head)
        if untouched and name not in trained:
            folded = ".".join(re.sub(r"^\d+$|(?<=_)\d+$", "*", part) for part in name.split("."))
            left[folded] = None
            if _PROJECTION.search(name) and not reachable & {*places[id(parameter)]}:
                missed[folded] = None
    if left:
        logger.info("%r leaves these matrices as they are: %s", strategy, ", ".join(left))
    if missed:
        logger.warning(
            "%r cannot adapt these projections of an attention, which are in no Linear or Conv2d layer: %s",
            strategy,
            ", ".join(missed),
        )
