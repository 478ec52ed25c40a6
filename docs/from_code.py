"""What the pages take from the code: the names at the root, the options of the commands, and links between docstrings.

And from results: the leaderboard.
"""

import contextlib
import inspect
import re
import sys
from functools import cache
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from docutils.nodes import Element, Node, TextElement
from numpy.typing import ArrayLike
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

import leaderboard
import paretune
from paretune.commands import COMMANDS
from paretune.commands.parser import command_parser


class RootNames(SphinxDirective):
    """A table of the names at the root of the package, each with the first sentence about it."""

    def run(self) -> list[Node]:
        """Parse the table where the directive stands."""
        rows = ["| name | what it is |", "|---|---|"]
        for name in paretune.__all__:
            if not name.startswith("_"):
                summary = _text(getattr(paretune, name)).partition("\n\n")[0].replace("\n", " ")
                summary = re.sub(r"https://[^\s,)]+", r"<\g<0>>", summary)
                rows.append(f"| {{py:obj}}`{name} <paretune.{name}>` | {summary} |")
        return self.parse_text_to_nodes("\n".join(rows))


class CommandLine(SphinxDirective):
    """A section for each command, from the parser that reads its options."""

    def run(self) -> list[Node]:
        """Parse the sections where the directive stands."""
        text = "\n".join(line for words in COMMANDS for line in _command(words, command_parser(words)))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Leaderboard(SphinxDirective):
    """A table for each task and threat that submissions are about."""

    def run(self) -> list[Node]:
        """Parse the tables where the directive stands."""
        self.env.note_reread()  # a submission may have come or gone
        return self.parse_text_to_nodes(leaderboard.markdown(), allow_section_headings=True)


def _command(name: str, parser: Any) -> list[str]:
    actions = [action for action in parser._actions if action.help and action.default != "==SUPPRESS=="]
    values = "".join(f" {action.dest.upper()}" for action in actions if not action.option_strings)
    lines = [f"## paretune {name}", "", _text(COMMANDS[name]).partition("\nArgs:")[0], ""]
    lines += [
        "```text",
        f"paretune {name}{values} [OPTIONS]",
        "```",
        "",
        f":::{{program}} paretune {name}",
        ":::",
        "",
    ]
    for action in actions:
        spelt = "--" + action.dest.replace("_", "-") if action.option_strings else action.dest.upper()
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        told = "" if action.required or default is None else f" Default: `{default}`."
        lines += [
            f":::{{option}} {spelt}",
            action.help.replace("%%", "%").replace("``", "`") + told,
            ":::",
            "",
        ]
    return lines


def _text(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__).replace("``", "`")


def untyped(_app: Sphinx, kind: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading what is before the first colon about a property as its type."""
    if kind in ("attribute", "property", "data"):
        lines[:0] = ["..", ""]  # a comment that has no colon


def rename(
    _app: Sphinx, _kind: str, _name: str, _value: Any, _options: Any, *parts: str | None
) -> tuple[str | None, ...]:
    """Write ArrayLike in signatures, for which they have the twenty types that it stands for."""
    return tuple(
        part and part.replace(stringify_annotation(ArrayLike, "smart"), "ArrayLike") for part in parts
    )


def shorten(_app: Sphinx, _domain: str, kind: str, content: addnodes.desc_content) -> None:
    """Leave out the values of dictionaries, which are other pages' classes."""
    for part in list(content.parent.findall(addnodes.desc_annotation)) if kind == "data" else ():
        if part.astext().startswith(" = "):
            part.parent.remove(part)


def skip(_app: Sphinx, _kind: str, name: str, value: Any, skipped: bool, _options: Any) -> bool | None:
    """Leave out a method that does what a base class of the package says of it."""
    function = value.fget if isinstance(value, property) else value
    owner, _, method = getattr(function, "__qualname__", "").rpartition(".")
    holder = getattr(sys.modules.get(getattr(function, "__module__", "")), owner, None)
    if not inspect.isclass(holder) or method != name.rpartition(".")[2]:
        return None
    explained = any(
        method in vars(base) and base.__module__.startswith("paretune") for base in holder.__mro__[1:]
    )
    return True if explained else None


def link(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: TextElement
) -> Element | None:
    """Link to an object under the name that the reference has it by; types in signatures may have none."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if "." not in target and node.get("py:class"):  # a method that its class inherits
        target = f"{node['py:module']}.{node['py:class']}.{target}"
    try:
        name = _names(env).get(id(_value(target)))
    except AttributeError:
        name = None
    if name is not None:
        python = env.domains.python_domain
        return python.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    above, in_signature = node.parent, False
    while above is not None and not in_signature:
        above, in_signature = above.parent, isinstance(above, addnodes.desc_signature)
    return content if in_signature or ("." in target and not target.startswith("paretune.")) else None


@cache
def _names(env: BuildEnvironment) -> dict[int, str]:
    """The name of each documented object, by its identity."""
    names = {}
    for name in env.domains.python_domain.objects:
        with contextlib.suppress(
            AttributeError
        ):  # attributes of instances, which nothing refers to by another name
            names[id(_value(name))] = name
    return names


def _value(name: str) -> Any:
    return attrgetter(name)(SimpleNamespace(paretune=paretune))


def complete(_app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page of the reference has."""
    for folder in filter(inspect.ismodule, (getattr(paretune, name) for name in dir(paretune))):
        for name in getattr(folder, "__all__", ()):
            if id(getattr(folder, name)) not in _names(env):
                logging.getLogger(__name__).warning(
                    "no page of the reference has %s.%s", folder.__name__, name
                )


def setup(app: Sphinx) -> dict[str, bool]:
    """Make all this known to Sphinx."""
    app.add_directive("root-names", RootNames)
    app.add_directive("command-line", CommandLine)
    app.add_directive("leaderboard", Leaderboard)
    app.connect("autodoc-process-docstring", untyped, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-signature", rename)
    app.connect("object-description-transform", shorten)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-check-consistency", complete)
    app.connect("missing-reference", link)
    return {"parallel_read_safe": True}
