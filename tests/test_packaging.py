"""What the project says it needs: the ranges hold for the versions of the lock and for every Python it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
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
    body = (ROOT / "paper.md").read_text().split("---", 2)[2]
    assert 750 < len(body.split()) < 1000  # JOSS asks for 750 to 1750 words, and for these sections
    assert {"Summary", "Statement of need", "State of the field", "Software design", "Research impact statement",
            "AI usage disclosure", "Acknowledgements", "References"} < set(re.findall("^# (.+)$", body, re.MULTILINE))  # fmt: skip


def test_pythons_of_the_classifiers_are_those_of_the_range() -> None:
    named = {word.rsplit(" ", 1)[1] for word in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", word)}
    assert named == {python.removesuffix(".0") for python in PYTHONS}


def test_the_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    """Built, installed without its dependencies into a new environment that sees this one's, and used from elsewhere."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(copy), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)], check=True
    )
    (wheel,) = tmp_path.glob("mindvideo-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", str(wheel), "--no-deps", "--no-index", "--target", str(site)], check=True)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = """
import mindvideo, sys
from mindvideo.cli import main
sys.argv[0] = "mindvideo"
try:
    main()
except SystemExit as stop:
    assert not stop.code
assert mindvideo.__file__.startswith(sys.prefix), mindvideo.__file__
"""
    small = [
        "train_segments=3",
        "test_segments=1",
        "segment_s=8",
        "test_runs=2",
        "size=32",
        "pretrain_people=1",
        "pretrain_runs=1",
        "pretrain_run_s=36",
    ]
    settings = [word for setting in small for word in ("--set", f"simulate.{setting}")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", program, "run", "demo", "--out", "run", "--until", "simulate", *settings],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run" / "simulate" / "done.json").is_file()
    assert len(list((tmp_path / "run" / "simulate" / "stimuli").glob("*.mp4"))) == 4
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {"mindvideo/recipes/wen2018.yaml", "mindvideo/kit/unet/config.json", "mindvideo/py.typed"} <= set(names)
