"""Numbers that say where they come from: a file, a place in it, and the value.

``data-source`` is a file of the run folder and ``data-key`` the way to the number in it, its steps
joined by ``|``: keys and list positions of JSON; ``last|FIELD`` of a log, the last row that has the
field; ``ROW|COLUMN`` of ``windows.csv``; keys of ``Store.summary()``. A number worked out from a
whole file has ``data-derived`` in place of a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from mindvideo.report.wording import write


@dataclass(frozen=True)
class Source:
    """Where a number lies: a file of the run folder, the way in it, and the file's content."""

    file: str
    key: tuple[str, ...] = ()
    derived: str = ""
    run: int | None = None
    content: Any = None

    def at(self, *steps: str | int) -> Source:
        """A place further inside."""
        return replace(self, key=(*self.key, *map(str, steps)))

    @property
    def value(self) -> Any:
        """What lies there; objects count as mappings of their attributes."""
        found = self.content
        for step in self.key:
            if isinstance(found, Mapping):
                found = found[step]
            else:
                found = found[int(step)] if isinstance(found, Sequence) else getattr(found, step)
        return found

    def cite(self, *steps: str | int, form: str = "number") -> Markup:
        """The number at a place further inside, in a form of `FORMS`."""
        place = self.at(*steps)
        return cite(place.value, place, form)

    def attributes(self, value: float | None, form: str = "number") -> Markup:
        """HTML attributes for an element that shows ``value``."""
        parts = [f'data-source="{escape(self.file)}"']
        if self.run is not None:
            parts.append(f'data-run="{self.run}"')
        if self.derived:
            parts.append(f'data-derived="{escape(self.derived)}"')
        else:
            parts.append(f'data-key="{escape("|".join(self.key))}" data-form="{escape(form)}"')
            parts.append(f'data-value="{escape(json.dumps(value))}"')
        return Markup(" " + " ".join(parts))


def cite(value: float | None, source: Source, form: str = "number", text: str | None = None) -> Markup:
    """A number in a form of `FORMS`, or as ``text``, in an element that names its source."""
    shown = write(value, form) if text is None else text
    if value is None and text is None:
        return Markup(escape(shown))
    return Markup(f"<data{source.attributes(value, form)}>{escape(shown)}</data>")


def cite_interval(source: Source) -> Markup:
    """``[.190, .240]``, the ``interval`` of what lies there, or nothing."""
    place = source.at("interval")
    return Markup("") if None in place.value else Markup(f"[{place.cite(0)}, {place.cite(1)}]")


def count_of(number: int, file: str, how: str) -> Markup:
    """A whole number worked out from a file."""
    return cite(number, Source(file, derived=how), text=str(number))
