"""The pages of README and docs as the tests read them: blocks of code, and commands as they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(language, file name or nothing, content) of every block of code, in order."""
    return [(found[1], found[2] or "", found[3]) for found in _BLOCK.finditer(text)]


def lines(content: str) -> list[str]:
    """The commands of a block: continued lines put together, comments left out."""
    joined = content.replace("\\\n", " ")
    return [line for line in (re.sub(r"(^|\s)#.*$", "", each).strip() for each in joined.splitlines()) if line]


def words(line: str) -> list[str]:
    """A command as a shell hands it over, zsh too: brackets, stars and braces must stand in quotes."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    assert not re.search(r"[\[\]{}*?]", bare), f"quotes are missing in: {line}"
    return shlex.split(line)


_LAUNCHED = re.compile(r"^(srun )?(accelerate launch .*?-m mindvideo\.cli|mindvideo) ")
"""A command of ours by itself, under SLURM, or in several processes."""


def commands(text: str) -> list[str]:
    """Every ``mindvideo …`` of a page: those of its blocks, and those inside its lines, without what launches them."""
    printed = [line for language, _, content in blocks(text) if language == "bash" for line in lines(content)]
    inside = [" ".join(each.split()) for each in re.findall(r"(?<!`)`([^`]+)`", _BLOCK.sub("", text))]
    return [_LAUNCHED.sub("mindvideo ", line) for line in (*printed, *inside) if _LAUNCHED.match(line)]


def scripts(text: str) -> list[str]:
    """Every script of the repository that a page tells to run."""
    return re.findall(r"python\s+((?:benchmarks|docs|tools)/[\w/]+\.py)", text)
