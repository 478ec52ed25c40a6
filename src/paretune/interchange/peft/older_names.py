"""Names of layers that transformers 5 has renamed: adapters trained with version 4 name the old ones."""

import re
from collections.abc import Container

_RENAMED = (
    (r"attention\.(?:attention|self)\.query", "attention.q_proj"),
    (r"attention\.(?:attention|self)\.key", "attention.k_proj"),
    (r"attention\.(?:attention|self)\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)


def current_name(name: str, present: Container[str]) -> str:
    """The name that ``name`` has now, if that is ``present`` in the model; otherwise ``name``."""
    if name in present:
        return name
    renamed = name
    for old, new in _RENAMED:
        renamed = re.sub(old, new, renamed)
    for candidate in (renamed, renamed.replace("encoder.layer.", "layers.")):
        if candidate in present:
            return candidate
    return name
