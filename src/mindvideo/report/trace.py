"""Numbers that say where they come from: a file, a place in it, and the value.

``data-source`` is a file of the run folder and ``data-key`` the way to the number in it, its steps
joined by ``|``:

- ``*.json``: keys and list positions;
- ``*/metrics.jsonl``: ``last|FIELD``, the last row that has the field, or ``max|FIELD``;
- ``evaluate/windows.csv``: ``ROW|COLUMN``, rows counted as the clips of ``reconstruct/clips.zarr``;
- ``prepare/store.zarr``: keys of ``Store.summary()``.

``differences*.json`` lies beside the page, ``FOLDER/ablation.json`` beside or above the run.

A number worked out from a whole file has ``data-derived`` in place of a key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mindvideo.report.wording import FORMS


@dataclass(frozen=True)
class Source:
    """Where a number lies: a file of the run folder, and the way in it."""

    file: str
    key: tuple[str, ...] = ()
    derived: str = ""
    run: int | None = None

    def at(self, *steps: str | int) -> Source:
        """A place further inside."""
        return Source(self.file, (*self.key, *map(str, steps)), self.derived, self.run)

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
    shown = FORMS[form](value) if text is None else text
    if value is None and text is None:
        return Markup(escape(shown))
    return Markup(f"<data{source.attributes(value, form)}>{escape(shown)}</data>")


def cite_interval(interval: Sequence[float | None] | None, source: Source) -> Markup:
    """``[.190, .240]``, each end with its source, or nothing."""
    if interval is None or None in interval:
        return Markup("")
    ends = [cite(end, source.at(i)) for i, end in enumerate(interval)]
    return Markup(f"[{ends[0]}, {ends[1]}]")


def count_of(number: int, file: str, how: str) -> Markup:
    """A whole number worked out from a file."""
    return cite(number, Source(file, derived=how), text=str(number))
