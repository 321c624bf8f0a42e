"""What the project says it needs: the ranges hold for the versions of the lock and for every Python it names."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")
EXTRAS = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
REQUIREMENTS = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS)]
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
}


def test_every_dependency_is_locked_inside_its_range() -> None:
    for requirement in REQUIREMENTS:
        assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_what_is_installed_runs_on_every_python_the_project_names() -> None:
    ours = SpecifierSet(PROJECT["requires-python"])
    assert all(python in ours for python in PYTHONS) and "3.10.9" not in ours and "3.14.0" not in ours
    for found in distributions():
        if canonicalize_name(found.metadata["Name"]) in LOCK and (range_ := found.metadata.get("Requires-Python")):
            assert all(python in SpecifierSet(range_) for python in PYTHONS), found.metadata["Name"]


def test_one_opencv() -> None:
    assert [name for name in LOCK if name.startswith("opencv")] == ["opencv-python-headless"]
    assert "scenedetect" not in LOCK  # it requires another OpenCV; scenedetect-headless is the same program
