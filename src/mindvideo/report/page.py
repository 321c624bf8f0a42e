"""From a template to a page, with its pictures and files in it, or beside it if too large."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any

import jinja2

EMBEDDED_BYTES = 12_000_000
"""Files up to this size together are part of the page."""


def render(template: str, content: dict[str, Any]) -> str:
    """A page as HTML; a name that ``content`` lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mindvideo.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(content)


class Assets:
    """Takes pictures, clips and tables and gives their addresses.

    What does not fit into the ``room`` in bytes of the page goes to ``folder``, which will be
    ``assets`` beside it.
    """

    def __init__(self, folder: Path, room: int = EMBEDDED_BYTES) -> None:
        self.folder, self.room = folder, room
        self.n_beside = 0

    def add(self, name: str, content: bytes) -> str:
        """A ``data:`` address, or a path relative to the page where no room is left."""
        if len(content) <= self.room:
            self.room -= len(content)
            kind = mimetypes.guess_type(name)[0] or "text/plain"
            return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.n_beside += 1
        return f"assets/{name}"
