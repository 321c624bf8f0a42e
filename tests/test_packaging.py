"""What the project says it needs: the ranges hold for the versions of the lock and for every Python it names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import yaml
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


def test_version_licence_and_keywords_are_the_same_everywhere(cli: Callable[..., tuple[int, str]]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and PROJECT["version"] == citation["version"] == newest.group(1)
    assert cli("--version") == (0, f"mindvideo {PROJECT['version']}\n")
    assert PROJECT["license"] == citation["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith(
        "MIT License"
    )
    assert set(citation["keywords"]) <= set(PROJECT["keywords"])


def test_the_authors_are_the_same_everywhere_and_no_address_is_made_up() -> None:
    paper = yaml.safe_load((ROOT / "paper.md").read_text().split("---")[1])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    names = [[author["name"] for author in each["authors"]] for each in (paper, citation, PROJECT)]
    assert names[0] == names[1] == names[2]
    assert "urls" not in PROJECT and "doi" not in citation  # unknown: docs/project/contact.md
    assert "no public address" in (ROOT / "docs" / "project" / "contact.md").read_text()


def test_the_paper_cites_what_its_bibliography_has() -> None:
    cited = set(re.findall(r"@(\w+)", (ROOT / "paper.md").read_text()))
    assert cited == set(re.findall(r"^@\w+\{(\w+),", (ROOT / "paper.bib").read_text(), re.MULTILINE))
    assert len((ROOT / "paper.md").read_text().split()) < 1200  # JOSS: 250 to 1000 words, without the head


def test_pythons_of_the_classifiers_are_those_of_the_range() -> None:
    named = {word.rsplit(" ", 1)[1] for word in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", word)}
    assert named == {python.removesuffix(".0") for python in PYTHONS}
