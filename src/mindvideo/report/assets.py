"""The page's pictures and files: in the page, or beside it if too large."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path

EMBEDDED_BYTES = 12_000_000
"""Files up to this size together are part of the page."""


class Assets:
    """Takes pictures, clips and tables and gives their addresses.

    What does not fit into the ``room`` in bytes of the page goes to ``folder``, which will be ``assets`` beside it.
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
