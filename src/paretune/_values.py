"""Values that print as the call that makes them, and read back from that text without running code.

Strategies, threats, attacks, objectives and schedules are frozen dataclasses that inherit from :class:`Value`.
Their ``repr`` shows only what differs from the defaults, ``to_dict`` shows every field (the run key is made
of it), and :func:`parse` reads either the ``repr`` or a bare name such as ``"lora"``.
"""

import ast
import dataclasses
import difflib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

_ARITHMETIC = {
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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is not dataclasses.MISSING:
                default = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            else:
                default = dataclasses.MISSING
            if default is not dataclasses.MISSING and value == default and type(value) is type(default):
                continue
            parts.append(f"{field.name}={value!r}" if field.kw_only else repr(value))
        return f"{type(self).__name__}({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Every field, defaults included, as plain JSON values; ``"name"`` holds the class name."""
        return {"name": type(self).__name__} | {
            field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)
        }


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
    the names in ``choices`` are accepted, so the text cannot run code.

    Raises:
        ValueError: the text is not such a call, or names something that is not among ``choices``.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {text!r} as a call such as 'LoRA(rank=4)': {error.msg}") from None
    named = {_key(name): made for name, made in choices.items()}

    def look_up(name: str) -> type:
        if _key(name) not in named:
            near = difflib.get_close_matches(_key(name), named, n=1)
            hint = f"did you mean {named[near[0]].__name__}? " if near else ""
            raise ValueError(f"unknown name {name!r} in {text!r}; {hint}Choices: {', '.join(choices)}")
        return named[_key(name)]

    def read(node: ast.expr, top: bool = False) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if top or _key(name) in named:
                return _make(look_up(name), (), {}, text)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                if any(keyword.arg is None for keyword in keywords):
                    raise ValueError(f"'**' in {text!r} is not read; write the fields out")
                named_arguments = {str(keyword.arg): read(keyword.value) for keyword in keywords}
                return _make(look_up(name), tuple(read(arg) for arg in args), named_arguments, text)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(read(item) for item in items)
            case ast.Dict(keys=keys, values=values) if all(key is not None for key in keys):
                return {read(k): read(v) for k, v in zip(keys, values, strict=True) if k is not None}
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -read(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                try:
                    return _ARITHMETIC[type(op)](read(left), read(right))
                except (TypeError, ZeroDivisionError, OverflowError) as error:
                    raise ValueError(f"cannot compute {ast.unparse(node)!r} in {text!r}: {error}") from None
            case _:
                raise ValueError(
                    f"{ast.unparse(node)!r} in {text!r} is not a literal or one of: {', '.join(choices)}"
                )

    return read(node, top=True)


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _make(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> Any:
    try:
        return cls(*args, **kwargs)
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(cls))
        reason = str(error).replace("__init__()", "").replace("  ", " ")
        raise ValueError(
            f"cannot make {cls.__name__} from {text!r}: {reason}. Its fields: {fields}"
        ) from None


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


def parse_many(text: str, choices: Mapping[str, type]) -> tuple[Any, ...]:
    """Read ``"lora, BitFit()"``: several values, separated by commas; see :func:`parse`."""
    try:
        items = ast.parse(f"({text},)", mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"cannot read {text!r} as calls separated by commas, such as 'lora,BitFit()'"
        ) from None
    if not isinstance(items, ast.Tuple):
        raise ValueError(f"cannot read {text!r} as calls separated by commas, such as 'lora,BitFit()'")
    return tuple(parse(ast.unparse(item), choices) for item in items.elts)
