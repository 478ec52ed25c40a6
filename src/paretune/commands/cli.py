"""The command line: parser, errors, exit codes. Errors are one line and exit code 2."""

import contextlib
import logging
import os
import sys
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from paretune._values import from_dict, parse
from paretune.commands import COMMANDS
from paretune.commands.options import bounded, check_config, in_words, spelt
from paretune.data.sizes import Sides
from paretune.sweeps.config import Seeds, Strategies


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``paretune``; returns the exit code."""
    logging.basicConfig(level=logging.ERROR, format="paretune: %(message)s")
    logging.getLogger("paretune.backbones.weights").setLevel(
        logging.INFO
    )  # which weights of a checkpoint were taken
    logging.getLogger("paretune.attacks.copy").setLevel(logging.INFO)  # precision and engine, and why
    logging.getLogger("paretune.data.files").setLevel(logging.WARNING)  # which images are left out
    if "MASTER_ADDR" in os.environ:
        logging.getLogger("paretune.training.processes").setLevel(logging.INFO)
    try:
        parser = build_parser()
        options = parser.parse_args(spelt(sys.argv[1:] if argv is None else argv))
        if options.subcommand is None:
            parser.print_help()
            return 0
        command, chosen = COMMANDS[options.subcommand], parser.instantiate(options)[options.subcommand]
        with _flushed():
            command(**{field.name: chosen[field.name] for field in fields(command)})()  # type: ignore[arg-type]
    except KeyboardInterrupt:
        print("paretune: stopped; the same command goes on from the last evaluation point", file=sys.stderr)
        return 130
    except Exception as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        told = " ".join(str(error).split())
        if not told or not isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError):
            told = f"{type(error).__name__}: {told}"  # the text alone says little, as of a KeyError
        if "can't allocate memory" in told or "out of memory" in told:
            told = "there is not enough memory; lower --img-size, --batch-size or --limit"
        print(f"paretune: error: {told}", file=sys.stderr)
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
    import yaml
    from jsonargparse import ActionConfigFile, ArgumentParser, get_loader, set_loader
    from jsonargparse.typing import register_type

    from paretune.strategies import STRATEGIES, Strategy

    class Parser(ArgumentParser):  # type: ignore[misc]  # jsonargparse is not type-checked here
        command: str | None = None

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(in_words(message, self.command, COMMANDS)) from ex

    class Config(ActionConfigFile):  # type: ignore[misc]
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            check_config(values, parser.command, COMMANDS)
            super().__call__(parser, cfg, values, option_string)

    def strategy(value: Any) -> Strategy:
        if isinstance(value, Strategy):
            return value
        read = from_dict(value, STRATEGIES) if isinstance(value, Mapping) else parse(str(value), STRATEGIES)
        assert isinstance(read, Strategy)
        return read

    if not hasattr(get_loader("yaml"), "_bounded"):
        set_loader("yaml", bounded(get_loader("yaml")), (yaml.YAMLError,))
    register_type(Strategy, serializer=repr, deserializer=strategy, fail_already_registered=False)
    register_type(Sides, serializer=list, deserializer=Sides.read, fail_already_registered=False)
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
        one.command = name
        one.add_argument("--config", action=Config, help="YAML file with any of these options")
        one.add_class_arguments(command, None, as_positional=True)
        factories = {field.name: field.default_factory for field in fields(command)}  # type: ignore[arg-type]
        for action in one._actions:
            factory = factories.get(action.dest, MISSING)
            if (
                factory is not MISSING and action.default != SUPPRESS
            ):  # jsonargparse has made a dict of the value
                action.default = factory()
            if action.default is False:  # --gpu alone means --gpu true
                action.nargs, action.const = "?", True
        commands.add_subcommand(name, one, help=command.HELP)
    return parser


def _version() -> str:
    import paretune

    return paretune.__version__
