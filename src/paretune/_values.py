"""Values that print as the call that makes them, and read back from that text without running code.

Strategies, threats, attacks, objectives and schedules are frozen dataclasses that inherit from :class:`Value`.
Their ``repr`` shows only what differs from the defaults, ``to_dict`` shows every field (the run key is made
of it), and :func:`parse` reads either the ``repr`` or a bare name such as ``"lora"``.
"""

import ast
import contextlib
import dataclasses
import difflib
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

MOST_CHARACTERS = 10_000
_LATER, _ALWAYS = "later", object()
MOST_LEVELS = 50
MOST_EXPONENT = 64
LARGEST = 1e100
LAST_SEED = 2**32 - 1  # what numpy and scikit-learn take; torch takes more
MOST = 10**9  # of steps, images and the like: more than anybody waits for

# What other libraries and papers call our classes and their fields.
_KNOWN_AS = {
    "aa": "AutoAttack", "bias": "BitFit", "bim": "PGD", "bottleneck": "Adapter", "dora": "Peft", "adalora": "Peft",
    "full": "FullFineTune", "finetune": "FullFineTune", "ft": "FullFineTune", "houlsby": "Adapter", "ifgsm": "PGD",
    "head": "LinearProbe", "linear": "LinearProbe", "lp": "LinearProbe", "probe": "LinearProbe", "inf": "Linf",
    "layernorm": "NormTune", "ln": "NormTune", "bn": "NormTune", "norm": "NormTune", "norms": "NormTune",
    "pfeiffer": "Adapter", "phm": "Compacter", "prompt": "VisualPrompt", "vp": "VisualPrompt", "vpt": "VisualPrompt",
    "vptdeep": "VisualPrompt(kind='deep')", "vptshallow": "VisualPrompt(kind='shallow')", "facttt": "FacT(form='TT')",
    "facttk": "FacT(form='TK')", "gps": "Sparse(score='gradient')", "spt": "Sparse(score='sensitivity')",
    "caat": "Sparse(score='adversarial')", "loha": "Peft", "lokr": "Peft", "oft": "Peft", "boft": "Peft", "vera": "Peft",
    "l8": "Linf", "linfinity": "Linf", "fulllora": "LNLoRA", "adaptmlp": "AdaptFormer",
    "hflip": "Flip", "horizontalflip": "Flip", "mirror": "Flip", "rrc": "RandomResizedCrop", "jitter": "ColorJitter",
    "at": "AdversarialTraining", "madry": "AdversarialTraining", "standard": "Natural", "clean": "Natural",
}  # fmt: skip
_FIELDS_KNOWN_AS = {
    "r": ("rank",), "lorar": ("rank",), "lora_r": ("rank",), "lora_alpha": ("alpha",), "lora_dropout": ("dropout",),
    "target_modules": ("targets",), "modules": ("targets",), "use_rslora": ("rslora",), "layers": ("where",),
    "eps": ("epsilon", "threat"), "epsilon": ("threat",), "radius": ("epsilon", "threat"), "norm": ("threat",),
    "attack": ("inner",), "lambda_": ("beta",), "lam": ("beta",), "smoothing": ("label_smoothing",),
    "alpha": ("step_size",), "step": ("step_size",), "nb_iter": ("steps",), "n_iter": ("steps",), "iters": ("steps",),
    "iterations": ("steps",), "num_steps": ("steps",), "num_restarts": ("restarts",), "n_restarts": ("restarts",),
    "n_queries": ("queries",), "reduction_factor": ("reduction",), "tokens": ("size",), "num_tokens": ("size",),
    "prompt_length": ("size",), "length": ("size",), "phm_dim": ("n",), "learning_rate": ("lr",), "wd": ("weight_decay",),
    "num_layers": ("layers",), "num_ops": ("layers",), "n": ("layers",), "m": ("magnitude",), "prob": ("p",),
    "mstd": ("std",),
}  # fmt: skip

_ARITHMETIC: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


@dataclasses.dataclass(frozen=True)
class Value:
    """Base of the frozen dataclasses that configure a run."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in cls.__dict__:  # dataclass() keeps a __repr__ it finds in the class body
            cls.__repr__ = Value.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        parts = []
        # A base class may have keywords, whose fields come first; in a call they come last.
        for field in sorted(dataclasses.fields(self), key=lambda field: field.kw_only is True):
            value = getattr(self, field.name)
            if field.default is not dataclasses.MISSING:
                default = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            else:
                default = dataclasses.MISSING
            if default is not dataclasses.MISSING and value == default and type(value) is type(default):
                continue
            text = number_text(value) if isinstance(value, float) else repr(value)
            parts.append(f"{field.name}={text}" if field.kw_only else text)
        return f"{type(self).__name__}({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Every field, defaults included, as plain JSON values; ``"name"`` holds the class name.

        A field that is :func:`later` than runs and files that are already there is left out at its default.
        """
        return {"name": type(self).__name__} | {
            field.name: _plain(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.metadata.get(_LATER, _ALWAYS)
        }


def later(default: Any) -> Any:
    """The field of a new option, at whose default everything is as before there was one, its runs' names included."""
    return dataclasses.field(default=default, metadata={_LATER: default})


def number_text(value: float) -> str:
    """The shortest text that :func:`parse` reads as this very number: ``4/255`` for what is that, else its ``repr``."""
    text = repr(value)
    if len(text) > 10 and math.isfinite(value):
        levels = round(2 * 255 * value) / 2
        if levels / 255 == value:
            return f"{levels:g}/255"
    return text


class FrozenDict(Mapping[str, Any]):
    """A mapping that does not change, so that a value that has one can be hashed; lists in it become tuples."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {str(key): _frozen(value) for key, value in items.items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._items.items(), key=repr)))

    def __repr__(self) -> str:
        return repr(self._items)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict(value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def parse(text: str, choices: Mapping[str, type]) -> Any:
    """Read ``"LoRA(rank=4)"``, ``"PGD(Linf(4/255), steps=7)"`` or ``"lora"`` into the value it names.

    Names are matched without regard to case, ``_`` and ``-``. Only literals, arithmetic on numbers and calls of
    the names in ``choices`` are accepted, so the text cannot run code; lengths and numbers are bounded, so that it cannot
    take long either. Without ``choices`` it is a number.

    Raises:
        ValueError: the text is not such a call, or names something that is not among ``choices``.
    """
    return _Reader(text, choices).value(_tree(text.strip(), text, "a call such as 'LoRA(rank=4)'"))


def parse_many(text: str, choices: Mapping[str, type]) -> tuple[Any, ...]:
    """Read ``"lora, BitFit()"``: several values, separated by commas; see :func:`parse`."""
    return tuple(map(_Reader(text, choices).value, _items(text, choices, "'lora,BitFit()'")))


def parse_sums(text: str, choices: Mapping[str, type]) -> tuple[tuple[Any, ...], ...]:
    """Read ``"lora + EWC(), BitFit"``: the terms of several sums, separated by commas; see :func:`parse`."""
    reader = _Reader(text, choices)
    return tuple(
        tuple(map(reader.value, _terms(item))) for item in _items(text, choices, "'lora + EWC(), BitFit()'")
    )


def parse_number(name: str, text: str) -> float:
    """The number ``text``, which may be a fraction such as ``"4/255"``, for the argument ``name``.

    Raises:
        ValueError: it is no number.
    """
    try:
        return float(parse(text, {}))
    except ValueError as error:
        computed = str(error) if "compute" in str(error) or "too" in str(error) else ""
        raise ValueError(
            f"{name} must be a number or a fraction such as 4/255, got {shown(text)}{computed and ': '}{computed}"
        ) from None


def check_choices(value: Any, prefix: str = "") -> None:
    """Raise ValueError if a Literal field of a dataclass holds none of its values; ``prefix`` begins the message."""
    for field in dataclasses.fields(value):
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        given = getattr(value, field.name)
        if choices and given not in choices:
            either = " or ".join([", ".join(map(repr, choices[:-1])), repr(choices[-1])])
            raise ValueError(f"{prefix}{field.name} must be {either}, got {given!r}")


def check_whole(name: str, value: Any, least: int, most: int = MOST, hint: str = "") -> None:
    """Raise ValueError unless the argument ``name`` is a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {shown(value)}{hint}")


@contextlib.contextmanager
def told(name: str, value: str | None) -> Iterator[None]:
    """Let errors of the body say which option they are about, if it was given.

    Raises:
        ValueError: instead of a ValueError or an OSError, with ``name`` and ``value`` in front.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if value is None:
            raise
        text = str(error)
        raise ValueError(text if text.startswith(name) else f"{name}={shown(value)}: {text}") from error


def cache_directory(what: str) -> Path:
    """``$PARETUNE_CACHE/WHAT``, else ``$XDG_CACHE_HOME/paretune/WHAT``, else below ``~/.cache``."""
    if directory := os.environ.get("PARETUNE_CACHE"):
        return Path(directory).expanduser() / what
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "paretune" / what


def shown(text: object) -> str:
    """``repr`` of what a user wrote, cut where it is long."""
    whole = repr(text)
    return whole if len(whole) <= 100 else f"{whole[:80]}… ({len(whole)} characters)"


def _tree(source: str, text: str, wanted: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{shown(text)} is too long to read; at most {MOST_CHARACTERS} characters")
    try:
        return ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {shown(text)} as {wanted}: {error.msg}") from None
    except (RecursionError, MemoryError, ValueError):
        raise ValueError(f"cannot read {shown(text)} as {wanted}: it is nested too deeply") from None


def _items(text: str, choices: Mapping[str, type], example: str) -> list[ast.expr]:
    """What stands between the commas."""
    if not text.strip(" ,"):
        raise ValueError(f"{text!r} names nothing; name at least one of: {', '.join(choices)}")
    what = f"calls separated by commas, such as {example}"
    items = _tree(f"({text},)", text, what)
    if not isinstance(items, ast.Tuple):
        raise ValueError(f"cannot read {shown(text)} as {what}")
    return items.elts


def _terms(node: ast.expr) -> list[ast.expr]:
    """What stands between the plus signs."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_terms(left), *_terms(right)]
    return [node]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the values in one text."""

    text: str
    choices: Mapping[str, type]

    def value(self, node: ast.expr) -> Any:
        node = _joined(node)
        if isinstance(node, ast.Name):
            return self._make(node.id, (), {})
        value = self._read(node, 0)
        if self.choices and not isinstance(value, tuple(self.choices.values())):
            raise ValueError(f"{shown(self.text)} is not one of: {', '.join(self.choices)}")
        if not self.choices and not _is_number(value):
            raise ValueError(f"{shown(self.text)} is not a number")
        return value

    def _read(self, node: ast.expr, depth: int) -> Any:
        if depth > MOST_LEVELS:
            raise ValueError(f"{shown(self.text)} is nested too deeply; at most {MOST_LEVELS} levels")

        def read(inner: ast.expr) -> Any:
            return self._read(inner, depth + 1)

        match node:
            case ast.Constant(value=str() | bool() | int() | None as value):
                return value
            case ast.Constant(value=float() as value):
                if not math.isfinite(value):
                    raise ValueError(f"a number in {shown(self.text)} is too large")
                return value
            case ast.Name(id=name) if _key(name) in map(_key, self.choices):
                return self._make(name, (), {})
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                if any(keyword.arg is None for keyword in keywords):
                    raise ValueError(f"'**' in {shown(self.text)} is not read; write the fields out")
                named = {str(keyword.arg): read(keyword.value) for keyword in keywords}
                return self._make(name, tuple(map(read, args)), named)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(map(read, items))
            case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
                return {read(k): read(v) for k, v in zip(keys, values, strict=True) if k is not None}
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._compute(node, operator.neg, read(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return self._compute(node, _ARITHMETIC[type(op)], read(left), read(right))
            case _:
                raise ValueError(
                    f"{shown(ast.unparse(node))[1:-1]!r} in {shown(self.text)} is not a literal or one of: "
                    f"{', '.join(self.choices)}"
                )

    def _compute(self, node: ast.expr, operation: Callable[..., Any], *values: Any) -> Any:
        why = ""
        if not all(map(_is_number, values)):
            weighs = operation is operator.mul and _is_number(values[0])
            if not (operation is operator.add or weighs) or not any(
                isinstance(item, Value) for item in values
            ):
                why = "arithmetic is for numbers"
        elif operation is operator.pow and abs(values[1]) > MOST_EXPONENT:
            why = f"an exponent may be at most {MOST_EXPONENT}"
        if not why:
            try:
                result = operation(*values)
            except (TypeError, ZeroDivisionError, OverflowError) as error:
                why = str(error)
            else:
                if isinstance(result, Value) or (_is_number(result) and abs(result) < LARGEST):
                    return result
                why = "the result is too large or no real number"
        raise ValueError(f"cannot compute {shown(ast.unparse(node))} in {shown(self.text)}: {why}")

    def _make(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {_key(known): kind for known, kind in self.choices.items()}
        if _key(name) not in named:
            meant = _KNOWN_AS.get(_key(name), "")
            if _key(meant.partition("(")[0]) not in named:
                near = difflib.get_close_matches(_key(name), named, n=1)
                meant = named[near[0]].__name__ if near else ""
            hint = f"did you mean {meant}? " if meant else ""
            raise ValueError(
                f"unknown name {name!r} in {shown(self.text)}; {hint}Choices: {', '.join(self.choices)}"
            )
        cls = named[_key(name)]
        fields = [field.name for field in dataclasses.fields(cls)]
        for given in kwargs:
            if given not in fields:
                near = [known for known in _FIELDS_KNOWN_AS.get(given.lower(), ()) if known in fields]
                near = near or difflib.get_close_matches(given, fields, n=1)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise ValueError(
                    f"{cls.__name__} in {shown(self.text)} has no field {given!r}{hint} Its fields: {', '.join(fields)}"
                )
        try:
            return cls(*args, **kwargs)
        except TypeError as error:
            reason = str(error).replace(f"{cls.__name__}.__init__() ", "")
            raise ValueError(
                f"cannot make {cls.__name__} from {shown(self.text)}: {reason}. Its fields: {', '.join(fields)}"
            ) from None


def _joined(node: ast.expr) -> ast.expr:
    """A name with hyphens, or a call of it, such as ``bit-fit``, which Python reads as a difference."""
    match node:
        case ast.BinOp(left=left, op=ast.Sub(), right=ast.Name(id=last)):
            first = _joined(left)
            return ast.Name(f"{first.id}-{last}") if isinstance(first, ast.Name) else node
        case ast.BinOp(left=left, op=ast.Sub(), right=ast.Call(func=ast.Name(id=last)) as right):
            first = _joined(left)
            if isinstance(first, ast.Name):
                return ast.Call(ast.Name(f"{first.id}-{last}"), right.args, right.keywords)
    return node


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def from_dict(data: Mapping[str, Any], choices: Mapping[str, type]) -> Any:
    """The value whose :meth:`Value.to_dict` gave ``data``.

    Raises:
        ValueError: ``data`` names nothing among ``choices``, or has other fields.
    """
    if not isinstance(data, Mapping) or data.get("name") not in choices:
        named = data.get("name") if isinstance(data, Mapping) else data
        raise ValueError(f"unknown name {named!r}; choices: {', '.join(choices)}")
    cls = choices[data["name"]]
    known = {field.name for field in dataclasses.fields(cls)}
    strange = sorted(set(data) - known - {"name"})
    if strange:
        raise ValueError(
            f"{data['name']} has no field {', '.join(strange)}; its fields: {', '.join(sorted(known))}"
        )

    def read(value: Any) -> Any:
        if isinstance(value, Mapping) and "name" in value:
            return from_dict(value, choices)
        return tuple(read(item) for item in value) if isinstance(value, list) else value

    return cls(**{key: read(value) for key, value in data.items() if key != "name"})
