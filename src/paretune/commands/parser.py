"""The parsers of the command line: one for each command, and the tree of them all."""

import json
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, get_loader, set_loader
from jsonargparse.typing import register_type

from paretune._values import from_dict, parse
from paretune.commands import COMMANDS, GROUPS, Command
from paretune.commands.options import bounded, check_config, in_words, spelt

Level = Literal["debug", "info", "warning", "error"]


class Parser(ArgumentParser):  # type: ignore[misc]  # jsonargparse is not type-checked here
    """Raises its errors, in words."""

    command: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(in_words(message, self.command, COMMANDS)) from ex


class _Config(ActionConfigFile):  # type: ignore[misc]
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        content = check_config(values, parser.command, COMMANDS)
        if not any(
            value is not None for value in content.values()
        ):  # jsonargparse takes "weights:" for a text
            values = yaml.safe_dump(content)
        super().__call__(parser, cfg, values, option_string)


def read(arguments: Sequence[str]) -> tuple[Command, Level | None] | None:
    """The command that ``arguments`` call and its ``--log-level``; None where they call none, and help was printed.

    Only the class of this command is imported, so that help, ``--version`` and misspelt names are quick.

    Raises:
        ValueError: in words for the one who typed them.
        SystemExit: help or a version was asked for, and is printed.
    """
    arguments = spelt(arguments)
    for length in (2, 1):
        words = " ".join(arguments[:length])
        if words in COMMANDS:
            parser = command_parser(words)
            typed = _gathered(parser, _flags_apart(parser, arguments[length:]))
            parsed = parser.instantiate(parser.parse_args(typed))
            command: Any = COMMANDS[words]
            return command(**{field.name: parsed[field.name] for field in fields(command)}), parsed.log_level
    parser = build_parser(lambda words: Parser())
    if (
        arguments[:1]
        and arguments[0].partition("=")[0] not in ("--help", "--version")
        and arguments[0][:2] == "--"
    ):
        parser.error(f"unrecognized arguments: {arguments[0]}")
    options = parser.parse_args(arguments)
    if options.subcommand is not None:  # of a group
        return read([options.subcommand, "--help"])
    parser.print_help()
    return None


def build_parser(leaf: "Callable[[str], Parser] | None" = None) -> Parser:
    """The parser of the whole command line.

    Args:
        leaf: makes the parser of a command from the words that call it; the real one by default.
    """
    parser = Parser(prog="paretune", description="Robust, parameter-efficient fine-tuning of vision models.")
    parser.add_argument("--version", action="version", version=f"paretune {_version()}")
    commands = {"": parser.add_subcommands(required=False)}
    for words, listed in COMMANDS.listed.items():
        group, _, name = words.rpartition(" ")
        if group not in commands:
            inner = Parser(description=f"{GROUPS[group].capitalize()}.")
            inner.command = group
            commands[""].add_subcommand(group, inner, help=GROUPS[group])
            commands[group] = inner.add_subcommands(required=False)
        commands[group].add_subcommand(name, (leaf or command_parser)(words), help=listed.help)
    return parser


def command_parser(words: str) -> Parser:
    """The parser of one command; ``--config FILE`` and ``--print-config`` come with each."""
    command: Any = COMMANDS[words]
    if not hasattr(get_loader("yaml"), "_bounded"):
        set_loader("yaml", bounded(get_loader("yaml")), (yaml.YAMLError,))
    for kind in {inner for hint in get_type_hints(command).values() for inner in (hint, *get_args(hint))}:
        _register(kind)
    parser = Parser(prog=f"paretune {words}", description=(command.__doc__ or "").partition("\n\n")[0])
    parser.command = words
    parser.add_argument("--config", action=_Config, help="YAML file with any of these options")
    parser.add_class_arguments(command, None, as_positional=True)
    parser.add_argument(
        "--log_level",
        type=Level | None,
        help="what to tell on standard error, from which weight on; debug has the traceback of an error. By default errors, "
        "and which weights and which engine were taken",
    )
    factories = {field.name: field.default_factory for field in fields(command)}
    for action in parser._actions:
        factory = factories.get(action.dest, MISSING)
        if factory is not MISSING and action.default != SUPPRESS:  # jsonargparse has made a dict of the value
            action.default = factory()
        if not action.option_strings and getattr(action, "_typehint", None) == list[str]:  # one or several
            action.nargs, action._typehint, action.metavar = "+", str, None
        if action.default is False:  # --gpu alone means --gpu true
            action.nargs, action.const = "?", True
    return parser


def _flags_apart(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """``--gpu`` before anything but true or false as ``--gpu=true``, so that it does not take a name for its value."""
    flags = {name for action in parser._actions if action.const is True for name in action.option_strings}
    return [
        f"{argument}=true" if argument in flags and following.lower() not in ("true", "false") else argument
        for argument, following in pairwise([*arguments, ""])
    ]


def _gathered(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """Options that are given once for each of several things, as one list in the place of the first."""
    several = {
        name
        for action in parser._actions
        if any(hasattr(kind, "repeated") for kind in get_args(getattr(action, "_typehint", None)))
        for name in action.option_strings
    }
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    following = iter(arguments)
    for argument in following:
        name, equals, value = argument.partition("=")
        if name not in several:
            kept.append(argument)
            continue
        if not equals and (value := next(following, "--")).startswith("--"):
            parser.error(f"argument {name}: expected one argument")
        places.setdefault(name, len(kept))
        if name not in values:
            kept.append("")
        values.setdefault(name, []).append(value)
    for name, place in places.items():
        texts = values[name]
        kept[place] = f"{name}={texts[0] if len(texts) == 1 else json.dumps(texts)}"
    return kept


def _register(kind: Any) -> None:
    """Tell jsonargparse how a type of ours is read and written."""
    if hasattr(kind, "read"):  # several values with commas between them
        register_type(
            kind,
            serializer=_written,
            deserializer=lambda value: value if isinstance(value, kind) else kind.read(value),
            fail_already_registered=False,
        )
    elif getattr(kind, "__name__", "") == "Augmentation":
        from paretune.data.augmenting import read_augmentation

        register_type(kind, serializer=repr, deserializer=read_augmentation, fail_already_registered=False)
    elif getattr(kind, "__name__", "") == "Objective":
        from paretune.training.objectives import read_objective

        register_type(kind, serializer=repr, deserializer=read_objective, fail_already_registered=False)
    elif (registry := _registry(getattr(kind, "__name__", ""))) is not None:
        choices = registry

        def value_of(text: Any) -> Any:
            if isinstance(text, kind):
                return text
            if isinstance(text, tuple):  # of an option such as --schedule.start and its value
                call = f"{next(iter(choices))}({text[0]}={text[1]})"
                raise ValueError(f"{text[0]} is no option of its own; write a call with it, such as {call!r}")
            return from_dict(text, choices) if isinstance(text, Mapping) else parse(str(text), choices)

        register_type(kind, serializer=repr, deserializer=value_of, fail_already_registered=False)


def _written(value: Any) -> Any:
    """Several values as YAML has them, of which most are one text."""
    if isinstance(value, str):  # of a type that may be a word too, such as size
        return value
    if hasattr(value, "plain"):
        return value.plain()
    return ", ".join(part if isinstance(part, str) else repr(part) for part in value)


def _registry(kind: str) -> Mapping[str, type] | None:
    """The classes that a text for an option of this type may name; None where it is read otherwise."""
    if kind == "Strategy":
        from paretune.strategies import STRATEGIES

        return STRATEGIES
    if kind == "EpsilonSchedule":
        from paretune.training.schedules import SCHEDULES

        return SCHEDULES
    if kind == "Freezing":
        from paretune.training.freezing import FREEZING

        return FREEZING
    return None


def _version() -> str:
    import paretune

    return paretune.__version__
