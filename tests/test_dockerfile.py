"""The image holds what the package needs to be built. (Building it takes a registry of images.)"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_what_is_copied_exists_and_is_what_the_build_reads() -> None:
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", FILE, flags=re.M) for path in line.split()]
    assert copied
    assert not [path for path in copied if not (ROOT / path).exists()]
    project, wheel = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        wheel["packages"][0].split("/")[0],
    }
    assert {*copied} == needed


def test_what_is_installed_and_run_exists() -> None:
    (extra,) = re.findall(r'pip install .*"\.\[(\w+)\]"', FILE)
    assert extra in PROJECT["project"]["optional-dependencies"]
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', FILE, flags=re.M)
    assert command in PROJECT["project"]["scripts"]


def test_the_base_is_a_choice_between_a_cpu_and_cuda() -> None:
    (default,) = re.findall(r"^ARG BASE=(\S+)$", FILE, flags=re.M)
    assert "cuda" not in default
    assert FILE.index("ARG BASE") < FILE.index("FROM ${BASE}")
    (cuda,) = re.findall(r"--build-arg BASE=(nvidia/cuda:\S+)", FILE)
    assert cuda.endswith(default.replace(":", "").replace("ubuntu", "-ubuntu"))  # the same python3 in both


def test_what_is_copied_is_all_that_is_sent() -> None:
    """Runs, environments and the history beside the package, which may be gigabytes, are not read."""
    first, *others = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", FILE, flags=re.M) for path in line.split()]
    assert first == "*"
    assert {line.removeprefix("!") for line in others if line.startswith("!")} == {*copied}
