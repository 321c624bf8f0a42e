"""The site builds without a network and asks nobody for anything; its pages hold what the program says of itself."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from pages import ROOT

from mindvideo.config.recipe import setting_names
from mindvideo.stages import STAGES


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert not warnings  # a link or an anchor that leads nowhere, a page that is in no menu
    return folder


class _Loaded(HTMLParser):
    """What a browser fetches of its own accord for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(known.get("src") or "")
        elif tag == "link" and known.get("rel") != "canonical":
            self.found.append(known.get("href") or "")


def test_no_page_fetches_anything_from_a_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text())
        assert any(loaded.found) and not [each for each in loaded.found if re.match(r"(https?:)?//", each)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_every_setting_stage_and_public_class_is_on_the_site(site: Path) -> None:
    settings = (site / "reference" / "settings.html").read_text()
    assert not [name for name in setting_names() if f"<code>{name}</code>" not in settings]
    commands = (site / "reference" / "commands.html").read_text()
    assert "mindvideo prepare fmriprep" in commands and "--validation-segments" in commands
    guide = (site / "guide.html").read_text()
    assert not [name for name in STAGES if f"<code>{name}</code>" not in guide]
    python = (site / "reference" / "python.html").read_text()
    assert (
        "negative" in python and "n_way_top_k" in python and "0.1.0" in (site / "project" / "changes.html").read_text()
    )


def test_comments_cite_sections_of_the_methods_page_that_exist() -> None:
    sections = tuple(re.findall(r"^## (.+)$", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE))
    cited = 0
    for folder in ("src", "tests", "tools", "benchmarks"):
        for path in sorted(each for kind in ("*.py", "*.yaml") for each in (ROOT / folder).rglob(kind)):
            for words in re.findall(r"docs/method\.md, (.*)", path.read_text()):
                cited += 1
                assert words.startswith(sections), f"{path}: docs/method.md has no section {words}"
    assert cited > 50
