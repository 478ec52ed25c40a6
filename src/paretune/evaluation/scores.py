"""Which examples a model gets right, clean and under attack."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.attacks import Attack
from paretune.frontiers.classes import ByClass, by_class, name_of, wilson

Bits = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Which examples a model gets right; prints as a table of accuracies with Wilson's 95 % intervals.

    Args:
        clean: (examples,) booleans, right on the clean image.
        robust: for each attack (examples,) booleans, right on the clean and on the attacked image.
        split: fingerprint of the examples.
        classes: number of the model's logits; 0 where no example was measured here.
        labels: (examples,) true classes, int64.
        names: name of each class; None where nobody named them.
        seconds: that each attack took here; what was read from ``state`` takes none.
        shift: call of the shift that made the images, if one did.
        paired: whether the examples are those that another split begins with, in their order, with other pixels.
        elsewhere: of the shifts that were asked for, by the names of what they make.
    """

    clean: Bits
    robust: dict[Attack, Bits]
    split: str
    classes: int = 0
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] | None = None
    seconds: dict[Attack, float] = field(default_factory=dict)
    shift: str | None = None
    paired: bool = False
    elsewhere: Mapping[str, "Scores"] = field(default_factory=dict)

    def __repr__(self) -> str:
        bits = {"clean": self.clean} | {self.ran(attack): right for attack, right in self.robust.items()}
        table = {}
        for name, right in bits.items():
            low, high = wilson(right.mean(), len(right), 0.95)
            table[name] = {"accuracy": f"{right.mean():.3f}", "95% interval": f"{low:.3f} to {high:.3f}"}
        frame = pd.DataFrame.from_dict(table, orient="index")
        if self.labels is not None:
            balanced = [self.balanced_accuracy(attack) for attack in (None, *self.robust)]
            frame["balanced"] = [f"{accuracy:.3f}" for accuracy in balanced]
        text = f"{len(self.clean):,} examples\n{frame.to_string()}"
        if self.elsewhere:
            shifted = pd.Series(self.shifted_accuracy)
            shown = shifted.map("{:.3f}".format).to_string() if len(shifted) <= 20 else ""
            text += f"\nclean on {len(shifted)} shifts, {shifted.mean():.3f} on average\n{shown}".rstrip()
        return text

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each class is called that labels may number, also where a model answers among some of them."""
        if self.names is not None:
            return self.names
        known = 0 if self.labels is None else int(self.labels.max()) + 1
        return tuple(name_of(label, None) for label in range(max(self.classes, known)))

    @property
    def clean_accuracy(self) -> float:
        """Fraction right on clean images."""
        return float(self.clean.mean())

    def robust_accuracy(self, attack: Attack) -> float:
        """Fraction right on clean and attacked images; an upper bound on the true one."""
        return float(self.robust[attack].mean())

    @property
    def shifted_accuracy(self) -> dict[str, float]:
        """Clean accuracy on what each shift made, by its name; :mod:`paretune.shifts.measures` makes more of it."""
        return {name: scores.clean_accuracy for name, scores in self.elsewhere.items()}

    def balanced_accuracy(self, attack: Attack | None = None) -> float:
        """Mean over the classes of the fraction right, so that rare classes count as much as common ones.

        Args:
            attack: right on the clean and on the attacked image; None for the clean one alone.
        """
        return float(self._by_class(attack).accuracy.mean())

    def per_class(self, attack: Attack | None = None, *, level: float = 0.95) -> pd.DataFrame:
        """One row per class, worst first: class, examples, clean, clean_low, clean_high, and with an attack robust,
        robust_low, robust_high. Worst is the lowest robust accuracy, or clean accuracy without an attack.

        Args:
            attack: one of those that were evaluated; None for the clean images alone.
            level: of the intervals, in (0, 1). They are Wilson's, see :mod:`paretune.frontiers.classes`.
        """
        measured = {"clean": self._by_class(None, level)}
        if attack is not None:
            measured["robust"] = self._by_class(attack, level)
        columns: dict[str, Any] = {
            "class": [name_of(label, self.names) for label in measured["clean"].labels],
            "examples": measured["clean"].examples,
        }
        for name, rates in measured.items():
            columns |= {name: rates.accuracy, f"{name}_low": rates.low, f"{name}_high": rates.high}
        worst = [*measured.values()][-1].worst_first
        return pd.DataFrame(columns).iloc[worst].reset_index(drop=True)

    def _by_class(self, attack: Attack | None, level: float = 0.95) -> ByClass:
        if self.labels is None:
            raise ValueError("these scores have no labels, so nothing can be said of their classes")
        bits = self.clean if attack is None else self.robust[attack]
        return by_class(self.labels, bits[None], level=level)

    def ran(self, attack: Attack) -> str:
        """The call of ``attack`` as it ran on this model; see :meth:`~paretune.attacks.Attack.on`."""
        return repr(attack.on(self.classes) if self.classes else attack)

    def to_frame(self) -> pd.DataFrame:
        """One row per attack: attack, in the variant that ran, threat, epsilon, clean, robust, examples."""
        return pd.DataFrame(
            [
                {
                    "attack": self.ran(attack),
                    "threat": type(attack.threat).__name__,
                    "epsilon": attack.threat.epsilon,
                    "clean": self.clean_accuracy,
                    "robust": self.robust_accuracy(attack),
                    "examples": len(self.clean),
                }
                for attack in self.robust
            ],
            columns=["attack", "threat", "epsilon", "clean", "robust", "examples"],
        )
