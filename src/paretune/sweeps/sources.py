"""The images that runs learn: of one data set, or of several at once, each a task with a name."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from paretune._values import LAST_SEED, FrozenDict, check_whole, parse_number, shown, told
from paretune.data.images import ImageData, load_data
from paretune.data.parts import PART_ROLES
from paretune.data.sizes import ImageSize
from paretune.data.tables import TABLE_SUFFIXES, read_columns
from paretune.training.tasks import check_names

# The demo takes two minutes on a CPU: few images, and small ones.
_DEMO, _DEMO_LIMIT = "digits", 1000


class Domains(tuple[str, ...]):
    """Several domains of a data set; reads ``"photo,art"`` or a list of names."""

    @classmethod
    def read(cls, value: object) -> Self:
        """From a string, or a list of strings.

        Raises:
            ValueError: a name is empty, or there is none.
        """
        items = value if isinstance(value, list | tuple) else str(value).split(",")
        names = [str(item).strip() for item in items]
        if not names or not all(names):
            raise ValueError(
                f"train_domains must be names, separated by commas as in photo,art; got {shown(value)}"
            )
        return cls(names)


class DataSets(tuple[tuple[str, FrozenDict], ...]):
    """Several data sets by the names of their tasks, each with options of :class:`SourceConfig`.

    Reads a list of names and paths, of which one may be called otherwise, ``["digits", "blooms=photos/flowers"]``; or a
    mapping of them by name, ``{"digits": None, "blooms": {"data": "flowers.csv", "limit": 500}}``, where null is what the
    name says.
    """

    repeated = True  # on the command line the option is given once for each

    @classmethod
    def read(cls, value: object) -> Self:
        """From a list or a mapping; what its options say is checked by the configuration that it is of.

        Raises:
            ValueError: it is neither, names fewer than two, or one is no name, no path and no mapping.
        """
        if not isinstance(value, list | tuple | Mapping) or len(value) < 2:
            raise ValueError(f"several data sets are a list or a mapping of two or more, got {shown(value)}")
        pairs = value.items() if isinstance(value, Mapping) else map(_named, value)
        return cls((str(name), FrozenDict(_options(str(name), given))) for name, given in pairs)

    def plain(self) -> dict[str, dict[str, Any]]:
        """As YAML has it."""
        return {name: dict(options) for name, options in self}


class PerTask(tuple[tuple[str, float], ...]):
    """A number for each task; reads ``"digits=1,flowers=0.5"`` or a mapping."""

    @classmethod
    def read(cls, value: object) -> Self:
        """From a string or a mapping.

        Raises:
            ValueError: a part is no name and number, or a name is there twice.
        """
        parts: Any = value.items() if isinstance(value, Mapping) else value
        if not isinstance(value, Mapping | tuple):
            parts = _equations(str(value))
        pairs = [(str(name).strip(), _number(str(name), number)) for name, number in parts]
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError(f"each task has one number; got {shown(value)}")
        return cls(pairs)

    def plain(self) -> str:
        """As :meth:`read` reads it."""
        return ",".join(f"{name}={number!r}" for name, number in self)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which images there are.

    Args:
        data: digits, fashion-mnist, cifar10, cifar100, emoji, a folder of class folders, a .csv, .tsv or .parquet file of
            paths and labels, or hf:NAME. Given several times, each is a task of one model, with one adapter and a head for
            each: --data digits --data blooms=photos/flowers; in YAML a list, or a mapping by name with options of their own.
        data_root: where torchvision keeps its data sets, for cifar10 and the like, where npm has installed the pictures of
            emoji, or where the paths of a table start.
        columns: names of columns of a table by what they hold, as in image=file,label=species; also split, group, domain and
            subset.
        train_domains: domains of data to train on, separated by commas as in photo,art; the others are only measured. data
            is then emoji, a folder of domains of class folders, or a table or hf:NAME with a column domain.
        skip_bad: leave out images that cannot be read, and say how many; false names all of them and stops.
        limit: use this many images only, over all splits, or "all"; null is all, but 1000 of digits, the demo.
        split_seed: seeds the train, select and report splits, which all runs share.
    """

    data: str | DataSets = _DEMO
    data_root: str | None = None
    columns: str | None = None
    train_domains: Domains | None = None
    skip_bad: bool = False
    limit: int | Literal["all"] | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        data: Any = self.data
        if not isinstance(data, str | DataSets):
            object.__setattr__(self, "data", DataSets.read(data))
        columns: Any = self.columns
        if isinstance(columns, Mapping):
            text = ",".join(f"{what}={column}" for what, column in columns.items())
            object.__setattr__(self, "columns", text)
        if self.columns is not None:
            with told("columns", self.columns):
                read_columns(self.columns)
        if self.train_domains is not None:
            object.__setattr__(self, "train_domains", Domains.read(self.train_domains))
        if self.limit is not None and self.limit != "all":
            check_whole("limit", self.limit, 1)
        if not isinstance(self.skip_bad, bool):
            raise ValueError(f"skip_bad must be true or false, got {shown(self.skip_bad)}")
        check_whole("split_seed", self.split_seed, 0, LAST_SEED)
        if tasks := self.sources:
            check_names(tasks)
            if all(name.lower() in PART_ROLES for name in tasks):
                raise ValueError(
                    f"data: {', '.join(tasks)} are names of splits; name tasks otherwise, and give one data set with its "
                    "splits as a folder that has a folder for each"
                )

    @property
    def sources(self) -> dict[str, "SourceConfig"]:
        """Of several data sets, the images of each task by its name; empty for one data set.

        Raises:
            ValueError: two have one name, or options are none of one data set or out of range.
        """
        if isinstance(self.data, str):
            return {}
        shared = {field.name: getattr(self, field.name) for field in fields(SourceConfig)}
        sources: dict[str, SourceConfig] = {}
        for name, options in self.data:
            if name in sources:
                raise ValueError(
                    f"data: two tasks are called {name!r}; give one another name, as in --data other={options['data']}"
                )
            if strange := [key for key in options if key not in shared]:
                raise ValueError(f"data: {name} has no option {strange[0]!r}; there are: {', '.join(shared)}")
            if not isinstance(options["data"], str):
                raise ValueError(f"data: {name} is one name or path, got {shown(options['data'])}")
            try:
                sources[name] = SourceConfig(**shared | dict(options))
            except ValueError as error:
                raise ValueError(f"data: {name}: {error}") from None
        return sources

    @property
    def is_demo(self) -> bool:
        """Whether the data is that of the demo, whose defaults are small."""
        return self.data == _DEMO

    @property
    def most(self) -> int | None:
        """The images to keep over all splits; None for all."""
        if self.limit is None:
            return _DEMO_LIMIT if self.is_demo else None
        return None if self.limit == "all" else self.limit

    def load(self, size: ImageSize) -> ImageData:
        """The one data set, at this size.

        Raises:
            ValueError: as :func:`paretune.load_data`.
        """
        text = str(self.data)
        try:
            with told("data", text):
                return self.read(text, size)
        except ValueError as error:
            parts = [part.strip() for part in text.split(",")]
            if Path(text).exists() or len(parts) == 1 or not all(parts):
                raise
            words = " ".join(f"--data {shlex.quote(part)}" for part in parts)
            raise ValueError(f"{error}; several tasks are given one by one: {words}") from error

    def read(self, data: Any, size: ImageSize) -> ImageData:
        """What :func:`paretune.load_data` makes of ``data`` at this size, with these options."""
        return load_data(data, img_size=size, train_domains=self.train_domains, **self.reading)

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of what reads data sets, whether as one or as their domains."""
        return {
            "seed": self.split_seed,
            "limit": self.most,
            "root": self.data_root,
            "columns": None if self.columns is None else read_columns(self.columns),
            "skip_bad": self.skip_bad,
        }


def objects_by_task(data: Any, train_domains: object) -> dict[str, Any] | None:
    """The data sets that ``data`` is of, by the names of their tasks; None if it is one for :func:`paretune.load_data`.

    Several are a list of texts, paths and what :func:`~paretune.load_data` returns, or a mapping of anything that it takes.
    A mapping of splits is one data set, and so is one of domains, with ``train_domains``.
    """
    if isinstance(data, Mapping):
        splits = all(str(key).lower() in PART_ROLES for key in data)
        return (
            None if splits or train_domains is not None else {str(key): value for key, value in data.items()}
        )
    if isinstance(data, list) and data and all(isinstance(item, str | Path | ImageData) for item in data):
        named = [(item.name, item) if isinstance(item, ImageData) else _named(item) for item in data]
        if len(dict(named)) < len(named):
            raise ValueError(
                f"data: two tasks have one name: {', '.join(name for name, _ in named)}; give a mapping"
            )
        return dict(named)
    return None


def is_named(given: Any) -> bool:
    """Whether it is a name, a path, or options of :class:`SourceConfig` with one: a text that a configuration can hold."""
    known = SourceConfig.__dataclass_fields__
    return (
        given is None
        or isinstance(given, str | Path)
        or (isinstance(given, Mapping) and {*given} <= {*known})
    )


def _named(given: object) -> tuple[str, object]:
    """A name for what is ``given``, and what it is."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        return str(given[0]), given[1]  # as DataSets holds it
    if isinstance(given, str) and (match := re.fullmatch(r"(\w[\w +-]*)=(.+)", given, re.DOTALL)):
        return match[1], match[2]
    text: Any = given.get("data", "") if isinstance(given, Mapping) else given
    if not isinstance(text, str | Path) or not str(text):
        raise ValueError(f"each data set is a name or a path, got {shown(given)}")
    if str(text).startswith("hf:"):
        last = str(text).rstrip("/").rpartition("/")[2].removeprefix("hf:")
    else:
        path = Path(text).absolute()
        last = path.stem if path.suffix.lower() in TABLE_SUFFIXES else path.name
    return re.sub(r"[^\w +-]+", "-", last).strip("-"), given


def _options(name: str, given: object) -> dict[str, Any]:
    """Options of the data set of the task ``name``."""
    if isinstance(given, Mapping):
        texts = {str(key): str(value) if isinstance(value, Path) else value for key, value in given.items()}
        return {"data": name} | texts
    if given is not None and not isinstance(given, str | Path):
        raise ValueError(f"data: {name} must be a name, a path or options by name, got {shown(given)}")
    return {"data": name if given is None else str(given)}


def _equations(text: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in parts):
        raise ValueError(f"each task has a number as in digits=1,flowers=0.5; got {shown(text)}")
    return [(name, number) for name, _, number in parts]


def _number(name: str, given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool):
        return given
    text = str(given).strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else parse_number(name, text)
