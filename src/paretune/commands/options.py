"""Options as people write them: files whose size is bounded, and errors in words instead of types."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from paretune._values import shown

MOST_CHARACTERS = 100_000
MOST_NODES = 10_000  # of a YAML file, with each alias replaced by what it stands for

_NEGATIVE = re.compile(r"-(\.?\d|inf|nan|\()", re.IGNORECASE)  # what argparse would take for an option
_MISTYPED = re.compile(
    r"(?:Expected a (.*?)\. Got value|Does not validate .*?Subtypes: (.*?) Errors: .*Given value): ?(.*)"
)
_NULL = "<class 'NoneType'>"
_OR_NULL = (
    rf"Does not validate .*?Subtypes: \[[^,]*, {_NULL}\] Errors: - "  # of a type of ours that may be null
)
_WORDS = {
    "int": "a whole number",
    "paretune.data.sizes.Sides": "height and width as in 32,48",
    "paretune.sweeps.sources.PerTask": "a number for each task as in digits=1,flowers=0.5",
    "float": "a finite number",
    "bool": "true or false",
    "NoneType": "null",
    "str": "a text (in a YAML file: in quotes)",
}

Commands = Mapping[str, Any]


def spelt(arguments: Sequence[str]) -> list[str]:
    """The arguments as the parser wants them: ``--print-config`` is ``--print_config``, and a minus may begin a value."""
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            joined.append("--" + name[2:].replace("-", "_") + equals + value)
        elif _NEGATIVE.match(argument) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def bounded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """``load``, for texts of YAML that are not too much to read."""

    def loaded(text: str) -> Any:
        if len(text) > MOST_CHARACTERS or ("&" in text and "*" in text):
            check_yaml(text, shown(text))
        return load(text)

    loaded._bounded = True  # type: ignore[attr-defined]
    return loaded


def check_config(file: str, command: str, commands: Commands) -> dict[str, Any]:
    """What a configuration holds; refused, before anything else reads it, if it is none of ``command``.

    Raises:
        ValueError: it is no file, too large, no YAML, no mapping, has keys that are no options, or null for one that needs a
            value.
    """
    from paretune.runs.disk import regular  # needs pandas, as the folder does

    path = Path(file)
    try:
        regular(path)
    except (OSError, ValueError) as error:
        why = (
            "does not exist"
            if isinstance(error, OSError) or not file
            else "is a directory, a pipe or a device"
        )
        raise ValueError(f"--config must name a YAML file; {shown(file)} {why}") from None
    if path.stat().st_size > 4 * MOST_CHARACTERS:
        raise ValueError(
            f"--config: {file} is too long to read; at most {MOST_CHARACTERS:,} characters are read"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--config: {file} is no text in UTF-8: {error}") from None
    check_yaml(text, f"--config: {file}")
    content = yaml.load(text, Loader=yaml.SafeLoader)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = "empty" if content is None else f"a {type(content).__name__}"
        raise ValueError(
            f"--config: {file} must hold lines of an option and its value, as --print-config prints them; it is {kind}"
        )
    strange = [key for key in content if key not in (*_fields(commands[command]), "log_level")]
    if strange:
        raise ValueError(f"--config: {file}: {unknown_options(strange, command, commands)}")
    for field in dataclasses.fields(commands[command]):
        if field.name in content and content[field.name] is None and field.default is not None:
            raise ValueError(
                f"--config: {file}: {_spelt(field.name)} has no value, and null is none of its values"
            )
    return content


def check_yaml(text: str, name: str) -> None:
    """Refuse what is no YAML, says an option twice, or would be too much with its aliases written out.

    Raises:
        ValueError: as said.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{name} is too long to read; at most {MOST_CHARACTERS:,} characters are read")
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES + 1  # what holds itself has no end
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        total = size(root)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply to read") from None
    if total > MOST_NODES:
        raise ValueError(
            f"{name} is too much to read with each alias written out; at most {MOST_NODES:,} values are read"
        )
    keys = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{name} has {key} {keys.count(key)} times; leave one")


def unknown_options(keys: Sequence[str], command: str, commands: Commands) -> str:
    """What is wrong with options that ``command`` does not have, whose they are, and which may be meant."""
    known = _fields(commands[command])
    whose: dict[str, list[str]] = {}
    near: list[str] = []
    for key in keys:
        root, _, inner = key.partition(".")
        if root in known and inner:
            default = next(field for field in dataclasses.fields(commands[command]) if field.name == root)
            value = default.default_factory() if default.default_factory is not dataclasses.MISSING else None
            fields = ", ".join(_fields(type(value))) if dataclasses.is_dataclass(value) else ""
            has = f"; its fields: {fields}" if fields else ""
            return f"{_spelt(root)} has no field {inner!r}{has}"
        owners = [name for name, other in commands.items() if root in _fields(other)]
        group = command.partition(" ")[0]
        owners = [name for name in owners if name.startswith(f"{group} ")] or owners
        whose.setdefault(" and ".join(owners), []).append(_spelt(key))
        near += difflib.get_close_matches(root, [*known, "log_level"], n=1)
    told = [
        f"{', '.join(options)} {'belong' if len(options) > 1 else 'belongs'} to {owners}"
        if owners
        else f"there is no option {', '.join(options)}"
        for owners, options in whose.items()
    ]
    hint = " and ".join(_spelt(name) for name in dict.fromkeys(near))
    way = f"{command} takes {hint}" if hint else f"paretune {command} --help lists what it takes"
    return f"{'; '.join(told)}; {way}"


def in_words(message: str, command: str | None, commands: Commands) -> str:
    """The parser's message with the option, the value and the way out, without its types."""
    text = " ".join(message.split())
    if command is None and (match := re.search(r"--\w+", text)):
        return f"{_spelt(match[0][2:])} is no option of paretune itself; write it after the command, as in train --seed 1"
    if match := re.fullmatch(r"unrecognized arguments: (.*)", text):
        options = [word[2:].partition("=")[0] for word in match[1].split(" ") if word.startswith("--")]
        if command and options:
            return unknown_options(options, command, commands)
        return f"{shown(match[1])} is no argument of paretune{f' {command}' if command else ''}; see --help"
    if command and (match := re.fullmatch(r"Group '(.*)' does not accept option '(.*)'", text)):
        return unknown_options([f"{match[1]}.{match[2]}"], command, commands)
    if match := re.fullmatch(r"the following arguments are required: (.*)", text):
        return f"{command} needs {match[1].replace(', ', ' and ').upper()}; see paretune {command} --help"
    if match := re.match(r"argument (?:--)?([\w.]+): expected one argument", text):
        return f"{_spelt(match[1])} needs a value"
    if match := re.match(r"argument subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", text):
        known = [name.strip("'") for name in match[2].split(", ")]
        close = difflib.get_close_matches(match[1], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        what = f"{command} has no action" if command else "there is no command"
        return f"{what} {shown(match[1])}{hint} There are: {', '.join(known)}"
    if match := re.fullmatch(r'Parser key "([\w.]+)": (.*)', text):
        return _of_value(_spelt(match[1]), match[2])
    return text


def _of_value(option: str, reason: str) -> str:
    if match := re.match(rf"(?:{_OR_NULL})?Not of type \w+: (.*?)(?: - Expected a {_NULL}.*)?$", reason):
        return f"{option}: {match[1]}"
    if match := re.match(r"Unable to load config ['\"](.*?)['\"]", reason):
        return f"{option} is set field by field, {option}.FIELD VALUE, as --help shows; got {shown(match[1])}"
    if not (match := _MISTYPED.match(reason)):
        return f"{option}: {reason}"
    types, value = match[1] or match[2], match[3]
    literal = re.search(r"Literal\[(.*?)\]", types)
    choices = re.findall(r"'(.*?)'", literal[1]) if literal else []
    wanted = [f"one of {', '.join(choices)}"] if choices else []
    wanted += [words for name, words in _WORDS.items() if f"class '{name}'" in types]
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[near[0]]}?" if near else ""
    return f"{option} must be {' or '.join(wanted) or types}, got {shown(value)}{hint}"


def _fields(command: type) -> list[str]:
    return [field.name for field in dataclasses.fields(command)]


def _spelt(key: str) -> str:
    return "--" + key.replace("_", "-")
