"""What type checkers and editors see of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import paretune

ROOT = Path(paretune.__file__).parent
USER = """
import paretune as pt

reveal_type(pt.train)
reveal_type(pt.load_data("digits", img_size=8).report.fingerprint)
reveal_type(pt.strategies.IA3())
pt.tarin
"""


def test_type_checkers_see_the_names_that_load_on_first_use() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        (node.module, alias.name, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = {(f"paretune.{folder}", name, name) for folder, many in paretune._NAMES.items() for name in many}
    assert seen == names | {("paretune", folder, folder) for folder in paretune._FOLDERS}


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()


@pytest.mark.slow
def test_a_user_s_file_is_checked_with_our_types(tmp_path: Path) -> None:
    """With the options of the checkout, so that what mypy keeps of it serves here too."""
    (tmp_path / "user.py").write_text(USER)
    checkout = ROOT.parents[1]
    options = ["--config-file", checkout / "pyproject.toml", "--cache-dir", checkout / ".mypy_cache"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "user.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    told = checked.stdout
    assert "def (model: paretune.backbones.backbone.Backbone, data: paretune.data.images.ImageData" in told
    assert 'Revealed type is "str"' in told.replace("builtins.", "")
    assert 'Revealed type is "paretune.strategies.ia3.IA3"' in told
    assert 'Module has no attribute "tarin"' in told
