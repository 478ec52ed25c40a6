"""The commands of the command line: each is a dataclass whose fields are its options."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol


class Command(Protocol):
    """What each command is: a frozen dataclass of options that can be run."""

    __dataclass_fields__: Any

    def __call__(self) -> None:
        """Do it, and print what a person wants to know."""


class Listed(NamedTuple):
    """One line of the table of commands: where its class is, and what it does, for the help above it."""

    module: str
    name: str
    help: str


class Commands(Mapping[str, type[Command]]):
    """Commands by the words that call them. A class is imported when it is asked for: that of ``train`` needs torch."""

    def __init__(self, listed: Mapping[str, Listed]) -> None:
        self.listed = listed

    def __getitem__(self, words: str) -> type[Command]:
        module, name, _ = self.listed[words]
        command: type[Command] = getattr(importlib.import_module(f"paretune.commands.{module}"), name)
        return command

    def __contains__(self, words: object) -> bool:
        return words in self.listed

    def __iter__(self) -> Iterator[str]:
        return iter(self.listed)

    def __len__(self) -> int:
        return len(self.listed)


GROUPS = {
    "runs": "list, show, compare, verify, export or remove run directories",
    "adapters": "show, verify, import, export, merge or publish a saved adapter",
}
COMMANDS = Commands(
    {
        "compare": Listed(
            "compare", "Compare", "train every strategy on one task and report which has the best frontier"
        ),
        "plan": Listed("compare", "Plan", "say what compare would run, and what that takes, before it does"),
        "train": Listed("train", "Train", "train one strategy and write a run directory with its adapter"),
        "evaluate": Listed("evaluate", "Evaluate", "measure a saved adapter, clean and under attack"),
        "average": Listed(
            "average",
            "Average",
            "measure averages of finished runs: WiSE-FT and model soups",
        ),
        "inherit": Listed(
            "inherit",
            "Inherit",
            "fine-tune on each of several related tasks and measure the others, as ImageNet-RIB does",
        ),
        "distance": Listed("distance", "Distance", "measure how far two data sets are apart"),
        "report": Listed("report", "Report", "judge finished runs: HTML report, SVG, PNG, PDF and CSV"),
        "watch": Listed("watch", "Watch", "show a sweep in the browser while it runs"),
        "analyze": Listed(
            "analyze", "Analyze", "compare the frontiers in any table of clean and robust accuracies"
        ),
        "runs list": Listed("runs", "List", "list the runs in directories, with their accuracies"),
        "runs show": Listed("runs", "Show", "print the configuration, the points and the findings of a run"),
        "runs diff": Listed("runs", "Diff", "print in what two runs differ"),
        "runs verify": Listed("verifying", "Verify", "check that runs are what they say"),
        "runs export": Listed("runs", "Export", "write runs as one table, or for a leaderboard"),
        "runs remove": Listed("runs", "Remove", "remove run directories, after a question"),
        "adapters show": Listed("adapters", "Show", "print what an adapter is"),
        "adapters verify": Listed("adapters", "Verify", "load an adapter onto its base"),
        "adapters import": Listed("adapters", "Import", "write an adapter of another library as ours"),
        "adapters export": Listed("adapters", "Export", "write an adapter for another library"),
        "adapters merge": Listed("adapters", "Merge", "write base and adapter as one plain checkpoint"),
        "adapters push": Listed("adapters", "Push", "upload an adapter to the Hugging Face hub"),
        "info": Listed("info", "Info", "print versions, devices and what is installed for offline use"),
        "completion": Listed(
            "completion", "Completion", "print what completes commands at the tab key of a shell"
        ),
        "selftest": Listed(
            "selftest", "Selftest", "check the attack kernels on this machine and print a report"
        ),
    }
)
