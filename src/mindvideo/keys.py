"""What a result follows from, as named parts that can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

_SHOWN = 40
"""Characters of a value that are shown where it changed."""


class Key:
    """Everything a result follows from.

    Parameters
    ----------
    parts : mapping of str to JSON value
        Nested settings are flattened to dotted names (``align.lr``). A value from
        `as_digest` stands for what has no value to show: a file, a stage, a part of the
        foundation, the source of a class.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts: dict[str, Any] = dict(_flatten(json.loads(json.dumps(parts))))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the parts, whatever their order."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def differences(self, older: Mapping[str, Any]) -> list[str]:
        """What differs from an older key's parts: ``align.lr 2e-5 → 1e-4``."""
        found = []
        for name in dict.fromkeys([*older, *self.parts]):
            old, new = (_shown(parts[name]) if name in parts else None for parts in (older, self.parts))
            if name in older and name in self.parts and older[name] == self.parts[name]:
                continue
            if "#" in (old or new or "")[:1]:  # a digest says nothing to a reader
                found.append(f"{name} {'is new' if old is None else 'is gone' if new is None else 'changed'}")
            else:
                found.append(f"{name} {old or '(not set)'} → {new or '(not set)'}")
        return found


def as_digest(*content: Any) -> str:
    """A part's value that stands for content which is not shown itself."""
    return "#" + hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _flatten(parts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in parts.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = value or "''"
    elif isinstance(value, float):
        plain = f"{value:g}"
        scientific = re.sub(r"\.?0*e([+-])0*(\d+)$", lambda match: f"e{match[1].strip('+')}{match[2]}", f"{value:.6e}")
        text = scientific if len(scientific) < len(plain) else plain
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
