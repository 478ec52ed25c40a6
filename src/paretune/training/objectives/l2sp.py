"""L2-SP: weights that stay near those that training starts from."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.data.images import ImageData
from paretune.strategies.mechanics.adapting import trainable_parameters
from paretune.training.objectives.anchored import Anchor, Anchored, Penalty, check_shown, square
from paretune.training.objectives.base import Term


@dataclass(frozen=True)
class L2SP(Anchor):
    """α/2 · ‖w_S − w_S⁰‖² + β/2 · ‖w_head‖², to be added to what learns: ``Natural() + L2SP()``.

    Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    https://arxiv.org/abs/1802.01483, equation 4. w_S are the tensors outside the head that training changes, with biases and
    norms, as the network computes with them, and w_S⁰ what they are at the start of training. So for LoRA the first norm is
    that of s · B A, as if the merged weight had been trained. Of what Adapter, Compacter or VisualPrompt insert into the
    network, which the pretrained one does not have, it is the distance of their parameters from their start. It is 0 when
    training begins; where that goes on from a loaded adapter, that is the start. ``AdamW(weight_decay=0)`` leaves it alone:
    the decay draws to zero what this draws to the start.

    Args:
        alpha: of the distance from the start, at least 0.
        beta: of the size of the head, at least 0; a head that is not trained counts nothing.

    Raises:
        ValueError: one of them is no finite number of at least 0, or both are 0.
    """

    _: KW_ONLY
    alpha: float = 0.1
    beta: float = 0.01

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            self.set_number(name)
        if not self.alpha and not self.beta:
            raise ValueError("L2SP: alpha and beta are both 0, so that nothing is held; give one of them")

    @property
    def reaches_all(self) -> bool:
        """It does."""
        return True

    def check(self, model: Backbone, data: ImageData) -> None:
        """Raise ValueError if peft has wrapped layers of ``model``; see :class:`~paretune.strategies.Peft`."""
        check_shown(model, "L2SP")

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With the weights that ``model`` has."""
        body = set(trainable_parameters(model, head=False))
        head = [parameter for name, parameter in trainable_parameters(model).items() if name not in body]
        return Penalty(partial(self._penalty, Anchored(model, "L2SP"), head))

    def _penalty(self, anchored: Anchored, head: Sequence[Tensor]) -> Tensor:
        size = sum((square(parameter).sum() for parameter in head if parameter.requires_grad), start=0.0)
        return self.alpha / 2 * anchored.distance() + self.beta / 2 * size
