"""``paretune completion``: commands and options at the tab key."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Completion:
    """Print the script with which a shell completes commands, options and their values at the tab key.

    In bash, ``source <(paretune completion bash)`` is all; put that line into .bashrc to keep it.

    Args:
        shell: that reads the script.
    """

    shell: Literal["bash", "zsh", "tcsh"]

    def __call__(self) -> None:
        """Print it."""
        from importlib.util import find_spec

        from paretune.commands.parser import build_parser

        if find_spec("shtab") is None:
            raise ImportError('completion needs shtab: pip install "paretune[completion]"')
        print(build_parser().get_completion_script(f"shtab-{self.shell}"))
