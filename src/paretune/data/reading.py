"""What :func:`paretune.load_data` takes, and who reads it."""

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from paretune.data.domains import of_domains
from paretune.data.emoji import emoji_styles
from paretune.data.folders import read_folder, subfolders
from paretune.data.lists import listed_domain
from paretune.data.mapped import check_mapped, column_domains, is_huggingface, name_of, read_mapped
from paretune.data.parts import PART_ROLES, Part, joined
from paretune.data.sources import SOURCES, Source
from paretune.data.splits import ROLES
from paretune.data.tables import COLUMNS, TABLE_SUFFIXES, domain_cells, read_table, read_table_file
from paretune.runs.disk import regular

logger = logging.getLogger(__name__)

_Domains = dict[str, Callable[[], dict[str, Part]]]  # what reads the parts of each, by role

#: What is known by name and comes in domains: what reads each of them, given where to look.
IN_DOMAINS: dict[str, Callable[[Path | None], _Domains]] = {"emoji": emoji_styles}
#: All names that are read from where packages keep what is called so.
NAMED = (*SOURCES, *IN_DOMAINS)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read, see the arguments of :func:`paretune.load_data`."""

    name: str | None = None
    classes: Sequence[str] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    download: bool = False
    skip_bad: bool = False
    train_domains: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.columns) - set(COLUMNS)):
            raise ValueError(f"columns names the {unknown[0]!r}; known are {', '.join(COLUMNS)}")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must have different names; got {list(self.classes)}")
        if "domain" in self.columns and self.train_domains is None:
            raise ValueError("columns names the domain; say which ones to train on with train_domains=[...]")


def read_source(given: Any, how: Reading) -> Source:
    """All examples of what is given.

    Raises:
        ValueError: It cannot be read, or its name is unknown.
        TypeError: It is nothing that can be read.
        FileNotFoundError: It is not on this machine.
        ImportError: A package is missing that reads it.
    """
    if how.train_domains is not None or (isinstance(given, str) and given in IN_DOMAINS):
        name, domains = _domains(given, how)
        train = [*domains] if how.train_domains is None else how.train_domains
        source = of_domains(how.name or name, domains, train, how.classes)
        # Other domains to train on are another task.
        return replace(source, name=how.name or f"{name}: {'+'.join(train)}")
    if isinstance(given, str) and given in SOURCES:
        source = SOURCES[given](how.root, how.download)
        if how.classes is not None and tuple(how.classes) != source.classes:
            raise ValueError(
                f"{given} has the classes {', '.join(source.classes)}, not {', '.join(how.classes)}; leave them out"
            )
        return source if how.name is None else replace(source, name=how.name)
    name, parts = _parts(given, how)
    return joined(how.name or name, parts)


def _domains(given: Any, how: Reading) -> tuple[str, _Domains]:
    """Its name, and what reads the parts of each of its domains."""
    columns = {what: column for what, column in how.columns.items() if what != "domain"}
    plain = replace(how, classes=None, columns=columns, train_domains=None)
    if isinstance(given, str) and given in IN_DOMAINS:
        return given, IN_DOMAINS[given](how.root)
    if isinstance(given, str) and given.startswith("hf:"):
        return given, _by_column(_hub(given.removeprefix("hf:")), given, how, plain)
    if is_huggingface(given):
        return name_of(given), _by_column({"train": given}, name_of(given), how, plain)
    if isinstance(given, Mapping):
        if given and all(
            is_huggingface(part) and str(split).lower() in PART_ROLES for split, part in given.items()
        ):
            name = name_of(next(iter(given.values())))
            return name, _by_column(given, name, how, plain)
        return "domains", _by_key(given, plain)
    path = Path(given) if isinstance(given, str | Path) else None
    if path is not None and str(given) and path.is_dir():
        return path.resolve().name, {
            domain: partial(_domain_folder, path, domain, how.skip_bad) for domain in subfolders(path)
        }
    if path is not None and not path.exists() and given not in NAMED:
        _of_path(given, plain)  # says what is missing
    name, frame, base = how.name or "table", given, how.root or Path()
    if path is not None and path.suffix.lower() in TABLE_SUFFIXES and path.exists():
        name, frame, base = path.stem, read_table_file(path), how.root or path.parent
    if not hasattr(frame, "iloc"):
        raise ValueError(
            f"train_domains={list(how.train_domains or ())} is for {', '.join(IN_DOMAINS)}, a folder "
            "DIR/DOMAIN/CLASS/IMAGE, a table or a data set of Hugging Face with a column of domains, or a mapping of a data "
            f"set for each domain; got {given!r:.100}"
        )
    cells = domain_cells(frame, str(given) if path else name, how.columns)
    rows: dict[str, list[int]] = {}
    for row, domain in enumerate(cells):
        rows.setdefault(domain, []).append(row)
    options = {"base": base, **_table_options(plain)}
    return name, {
        domain: partial(read_table, frame.iloc[of_domain], f"{name}, {domain}", **options)
        for domain, of_domain in rows.items()
    }


def _by_column(splits: Mapping[str, Any], name: str, how: Reading, plain: Reading) -> _Domains:
    return {
        domain: partial(_named_parts, parts, replace(plain, name=f"{name}, {domain}"))
        for domain, parts in column_domains(splits, name, how.columns).items()
    }


def _by_key(given: Mapping[Any, Any], plain: Reading) -> _Domains:
    if named := [str(domain) for domain, value in given.items() if isinstance(value, str) and value in NAMED]:
        raise ValueError(
            f"the domain {named[0]!r} is {given[named[0]]!r}, which is read by its name alone; give its data set of "
            "torchvision, or a folder or a table"
        )
    return {
        str(domain): partial(_named_parts, value, replace(plain, name=str(domain)))
        for domain, value in given.items()
    }


def _domain_folder(path: Path, domain: str, skip_bad: bool) -> dict[str, Part]:
    listed = listed_domain(path, domain, skip_bad=skip_bad)
    return read_folder(path / domain, classes=None, skip_bad=skip_bad) if listed is None else listed


def _named_parts(given: Any, how: Reading) -> dict[str, Part]:
    return _parts(given, how)[1]


def _parts(given: Any, how: Reading) -> tuple[str, dict[str, Part]]:
    """Its name and its parts by role; of what was never split, ``train`` alone."""
    if isinstance(given, str) and given.startswith("hf:"):
        return given, _given_parts(_hub(given.removeprefix("hf:")), replace(how, name=how.name or given))[1]
    if isinstance(given, str | Path):
        return _of_path(given, how)
    if hasattr(given, "iloc") and hasattr(given, "columns"):  # a DataFrame, without importing pandas to ask
        name = how.name or "table"
        return name, read_table(given, name, base=how.root or Path(), **_table_options(how))
    if isinstance(given, Mapping | tuple):
        return _given_parts(given, how)
    check_mapped(given)
    name = how.name or name_of(given)
    return name, {"train": read_mapped(given, name, classes=how.classes, columns=how.columns)}


def _of_path(given: str | Path, how: Reading) -> tuple[str, dict[str, Part]]:
    path = Path(given)
    if str(given) and path.is_dir():
        return path.resolve().name, read_folder(path, classes=how.classes, skip_bad=how.skip_bad)
    if path.suffix.lower() in TABLE_SUFFIXES and path.exists():
        options = {"base": how.root or path.parent, **_table_options(how)}
        return path.stem, read_table(read_table_file(path), str(path), **options)
    if path.is_file():
        raise ValueError(
            f"name_or_path={str(given)!r} must be a folder, or a table that ends with {', '.join(TABLE_SUFFIXES)}"
        )
    table = path.suffix.lower() in TABLE_SUFFIXES
    if isinstance(given, Path) or len(path.parts) > 1 or table:
        raise FileNotFoundError(f"name_or_path={str(given)!r} is not a {'file' if table else 'folder'}")
    near = difflib.get_close_matches(str(given).lower().replace("_", "-"), NAMED, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"name_or_path={given!r} is no known data set and no folder; {hint}"
        f"Choices: {', '.join(NAMED)}, hf:NAME, a folder of class folders, or a CSV file of paths and labels"
    )


def _table_options(how: Reading) -> dict[str, Any]:
    return {"columns": how.columns, "classes": how.classes, "skip_bad": how.skip_bad}


def _given_parts(given: Mapping[str, Any] | tuple[Any, ...], how: Reading) -> tuple[str, dict[str, Part]]:
    """Given splits, of which the first that is read names the classes."""
    if isinstance(given, tuple):
        names: dict[int, tuple[str, ...]] = {2: ("train", "report"), 3: ROLES}
        if len(given) not in names:
            raise ValueError(
                f"a tuple holds given splits, (train, report) or (train, select, report); got {len(given)}: give a "
                "list of examples as a list"
            )
        given = dict(zip(names[len(given)], given, strict=True))
    by_role: dict[str, str] = {}
    for key, value in given.items():
        role = "train" if len(given) == 1 else PART_ROLES.get(str(key).lower())
        if role is None and is_huggingface(value):  # such as "unsupervised"
            logger.info("the split %r is left out; known are %s", key, ", ".join(PART_ROLES))
            continue
        if role is None:
            raise ValueError(f"the split {key!r} is unknown; known are {', '.join(PART_ROLES)}")
        if role in by_role:
            raise ValueError(f"{by_role[role]!r} and {key!r} are both the {role} split; leave one")
        by_role[role] = key
    if "train" not in by_role:
        raise ValueError(f"there are the splits {', '.join(map(str, given))}, but none called 'train'")
    parts: dict[str, Part] = {}
    called = how.name or ""
    for role in ROLES:
        if role not in by_role:
            continue
        value = given[by_role[role]]
        classes = parts["train"].classes if parts else how.classes
        label = f"{how.name} ({by_role[role]})" if how.name else None
        name, inside = _parts(value, replace(how, classes=classes, name=label))
        if set(inside) != {"train"}:
            raise ValueError(
                f"the {role} split, {name}, has splits of its own; give it alone, or without them"
            )
        part = inside["train"]
        if role != "train" and bool((part.labels < 0).all()):
            # The mark of a test set whose answers were never published.
            logger.info("the split %r has no labels and is left out", by_role[role])
            continue
        parts[role], called = part, called or name
    if not parts["train"].named:
        parts = {role: replace(part, named=False) for role, part in parts.items()}
    return called, parts


def _hub(name: str) -> Any:
    """A data set of the Hugging Face hub, or a local folder in one of its formats, through ``datasets``."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'load_data("hf:{name}") needs the package datasets; install it with: '
            'pip install "paretune[datasets]"'
        ) from None
    for file in Path(name).rglob("*"):  # of a local folder
        if file.exists() and not file.is_dir():
            regular(file)
    return datasets.load_dataset(name)
