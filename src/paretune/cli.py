"""The command line: parser, errors, exit codes. Errors are one line and exit code 2."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from paretune._values import parse
from paretune.commands import COMMANDS
from paretune.config import Seeds, Strategies


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``paretune``; returns the exit code."""
    arguments = [_underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    logging.basicConfig(level=logging.ERROR, format="paretune: %(message)s")
    try:
        parser = build_parser()
        options = parser.parse_args(arguments)
        if options.subcommand is None:
            parser.print_help()
            return 0
        command, chosen = COMMANDS[options.subcommand], parser.instantiate(options)[options.subcommand]
        with _flushed():
            command(**{field.name: chosen[field.name] for field in fields(command)})()  # type: ignore[arg-type]
    except KeyboardInterrupt:
        print("paretune: stopped; the same command goes on from the last evaluation point", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        print(f"paretune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Write out what is printed inside; what a full disk or a closed pipe does not take is dropped, not tried again."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def build_parser() -> Any:
    """The parser of the whole command line; ``--config FILE`` and ``--print-config`` come with each command."""
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import register_type

    from paretune.strategies import STRATEGIES, Strategy

    class Parser(ArgumentParser):  # type: ignore[misc]  # jsonargparse is not type-checked here
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(message) from ex

    register_type(
        Strategy,
        serializer=repr,
        deserializer=lambda value: value if isinstance(value, Strategy) else parse(str(value), STRATEGIES),
        fail_already_registered=False,
    )
    for several in (Strategies, Seeds):
        register_type(
            several,
            serializer=lambda value: ", ".join(map(repr, value)),
            deserializer=lambda value, several=several: (
                value if isinstance(value, several) else several.read(value)
            ),
            fail_already_registered=False,
        )

    parser = Parser(prog="paretune", description="Robust, parameter-efficient fine-tuning of vision models.")
    parser.add_argument("--version", action="version", version=f"paretune {_version()}")
    commands = parser.add_subcommands(required=False)
    for name, command in COMMANDS.items():
        one = Parser(description=(command.__doc__ or "").partition("\n\n")[0])
        one.add_argument("--config", action="config", help="YAML file with any of these options")
        one.add_class_arguments(command, None, as_positional=True)
        for action in one._actions:
            if action.default is False:  # --gpu alone means --gpu true
                action.nargs, action.const = "?", True
        commands.add_subcommand(name, one, help=command.HELP)
    return parser


def _version() -> str:
    import paretune

    return paretune.__version__


def _underscored(argument: str) -> str:
    """``--print-config`` is ``--print_config``: options may be spelt with hyphens."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
