"""The commands of the command line: each is a dataclass whose fields are its options."""

from typing import ClassVar, Protocol

from paretune.commands.adapters import Adapters
from paretune.commands.analyze import Analyze
from paretune.commands.compare import Compare
from paretune.commands.evaluate import Evaluate
from paretune.commands.info import Info
from paretune.commands.report import Report
from paretune.commands.selftest import Selftest
from paretune.commands.train import Train
from paretune.commands.watch import Watch


class Command(Protocol):
    """What each command is: a frozen dataclass of options that can be run."""

    HELP: ClassVar[str]

    def __call__(self) -> None:
        """Do it, and print what a person wants to know."""


COMMANDS: dict[str, type[Command]] = {
    "compare": Compare,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "watch": Watch,
    "analyze": Analyze,
    "adapters": Adapters,
    "info": Info,
    "selftest": Selftest,
}
