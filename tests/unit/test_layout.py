"""The folders of the package show the flow, and imports follow it."""

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import paretune
from paretune.training import loop
from paretune.training.loop import train

ROOT = Path(paretune.__file__).parent
FOLDERS = {
    *(
        "data",
        "shifts",
        "backbones",
        "strategies",
        "kernels",
        "attacks",
        "runs",
        "evaluation",
        "training",
        "interchange",
    ),
    *("frontiers", "report", "sweeps", "watch", "selftest", "commands"),
}
Arrow = tuple[str, str, str]  # the module that imports, the module it imports, the name it takes from there


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in root.rglob("*.py"):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def arrows(root: Path) -> frozenset[Arrow]:
    """Every import of the package by itself, at the top of a module or inside a function."""
    return frozenset(_arrows(modules(root)))


def _arrows(known: dict[str, Path]) -> Iterator[Arrow]:
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name, "") for alias in node.names if alias.name in known)
            elif isinstance(node, ast.ImportFrom) and node.module in known:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    if submodule in known:
                        yield module, submodule, ""
                    else:
                        yield module, node.module, alias.name


def folder(module: str) -> str:
    """The first floor of a module; the root's own modules are floors of their own."""
    return [*module.split("."), ""][1]


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """Some circle of the graph, from a node back to it; empty if there is none."""
    after: dict[str, list[str]] = {}
    for a, b in sorted(edges):
        after.setdefault(a, []).append(b)
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for following in after.get(node, ()):
                if found := search(following, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(after) if (found := search(node, []))), [])


def private(arrow: Arrow) -> bool:
    """Whether an arrow between folders takes a name, or enters a module, that starts with an underscore."""
    module, imported, name = arrow
    if folder(module) == folder(imported) or imported == "paretune._values":
        return False
    return any(part.startswith("_") and not part.startswith("__") for part in (*imported.split("."), name))


def test_the_root_holds_folders_and_next_to_nothing_else() -> None:
    here = {path.name for path in ROOT.iterdir() if path.is_file() or any(path.rglob("*.py"))}
    # ``python -m paretune``, which launchers need, runs __main__; py.typed says that the package has types.
    assert here - FOLDERS <= {"__init__.py", "__main__.py", "_values.py", "py.typed"}
    assert here >= FOLDERS


def test_imports_between_folders_form_no_circle() -> None:
    edges = {(folder(a), folder(b)) for a, b, _ in arrows(ROOT)} - {(each, each) for each in FOLDERS}
    found = circle({(a, b) for a, b in edges if a and b and a != b})
    wrong = [
        f"{a} imports {b}" for a, b, _ in arrows(ROOT) if (folder(a), folder(b)) in itertools.pairwise(found)
    ]
    assert not found, f"{' -> '.join(found)}: " + "; ".join(sorted(wrong))


def test_imports_between_modules_form_no_circle_either_also_inside_functions() -> None:
    files = modules(ROOT)
    found = circle({(a, b) for a, b, _ in arrows(ROOT) if a != b and files[b].name != "__init__.py"})
    assert not found, " -> ".join(found)


def test_no_folder_takes_a_private_name_of_another() -> None:
    assert not [f"{a} takes {name or b} of {b}" for a, b, name in arrows(ROOT) if private((a, b, name))]


def test_files_are_short() -> None:
    assert not [str(path) for path in ROOT.rglob("*.py") if len(path.read_text().splitlines()) > 500]


def test_the_front_door_is_small() -> None:
    assert len(paretune.__all__) <= 35


def test_unit_tests_mirror_the_folders() -> None:
    here = Path(__file__).parent
    folders = {str(path.parent.relative_to(here)) for path in here.rglob("test_*.py")} - {"."}
    assert not {each for each in folders if not (ROOT / each).is_dir()}


def test_the_search_sees_circles_and_private_names(tmp_path: Path) -> None:
    """The tests above can fail."""
    root = tmp_path / "package"
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
    (root / "__init__.py").write_text("")
    (root / "one" / "a.py").write_text("from package.two import b\n")
    (root / "two" / "b.py").write_text("def late():\n    from package.one.a import _hidden\n")
    found = arrows(root)
    assert found == {("package.one.a", "package.two.b", ""), ("package.two.b", "package.one.a", "_hidden")}
    assert circle({(folder(a), folder(b)) for a, b, _ in found}) == ["one", "two", "one"]
    assert [arrow for arrow in found if private(arrow)] == [("package.two.b", "package.one.a", "_hidden")]


def test_the_loop_reads_in_one_sitting() -> None:
    assert len(inspect.getsource(train).splitlines()) <= 120
    assert len(inspect.getsource(loop).splitlines()) <= 250  # with what it takes, and why


def test_what_the_checks_name_is_there() -> None:
    root = ROOT.parents[1]
    named = re.findall(r"(?:tests|docs)/[\w/]+\.py", (root / ".ci/run").read_text("utf-8"))
    assert named
    assert [path for path in named if not (root / path).exists()] == []


def test_values_are_called_what_they_are() -> None:
    """``found``, ``made``, ``own`` and ``each`` say how a value came about, and not what it is."""
    vague = {"found", "made", "own", "each"}
    named = {
        (module, name)
        for module, path in modules(ROOT).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [node.arg]
            if isinstance(node, ast.arg)
            else [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else []
        )
        if name in vague
    }
    assert named == set()
