"""BIDS files: names, sidecars, tables, and the events that say which film was shown when.

BIDS 1.10 (bids-specification.readthedocs.io): file names are ``key-value`` pairs;
tables are tab-separated, with ``n/a`` for what is missing; onsets count from the first
volume; a file higher up holds for all recordings whose names it does not contradict.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindvideo.errors import DataError
from mindvideo.files import require_content

_INDICES = ("run", "echo", "flip", "inv", "split", "chunk")
"""Keys whose values are numbers: ``run-01`` and ``run-1`` are one run."""
_DERIVED = ("space", "den", "res", "desc", "hemi")
"""Keys that say what was made of a recording, not which recording it is."""
_MISSING = ("", "n/a", "na", "nan")


@dataclass(frozen=True)
class Event:
    """A row of events; onsets count from the first volume."""

    onset_s: float
    duration_s: float | None
    stimulus: str


def is_missing(text: str) -> bool:
    """Whether a field of a table holds no value: empty, ``n/a`` or NaN."""
    return text.strip().lower() in _MISSING


def parse_name(name: str) -> dict[str, str]:
    """The keys and values of a BIDS file name: ``{"sub": "01", "task": "movie", "run": "1"}``.

    Indices stand without leading zeros.
    """
    pairs = (part.split("-", 1) for part in name.split(".", 1)[0].split("_"))
    keys = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    return {key: (value.lstrip("0") or "0") if key in _INDICES else value for key, value in keys.items()}


def recording_name(name: str) -> str:
    """A recording's name without space and density: ``sub-01_ses-2_task-movie_run-1``."""
    parts = name.split(".", 1)[0].split("_")
    return "_".join(part for part in parts if "-" in part and part.split("-", 1)[0] not in _DERIVED)


def places_of(folder: Path, root: Path) -> list[Path]:
    """A recording's folder and those above it up to the root of its data set, nearest first."""
    return [place for place in (folder, *folder.parents) if place.is_relative_to(root)]


def raw_places(name: str, bids: Path) -> list[Path]:
    """The folders of a raw data set that may hold files of a recording, nearest first."""
    own = parse_name(name)
    subject = bids / f"sub-{own.get('sub', '')}"
    session = subject / f"ses-{own['ses']}" if "ses" in own else subject
    return list(dict.fromkeys([session / "func", session, subject, bids]))


def find_inherited(name: str, suffix: str, places: Sequence[Path]) -> Iterator[Path]:
    """Files that end in ``suffix`` (``bold.json``) and hold for a recording, nearest first.

    ``places`` are folders, nearest first; DataError if two files in one are equally near.
    """
    own = parse_name(name)
    for place in places:
        fitting: dict[int, list[Path]] = {}
        for path in sorted(place.glob(f"*{suffix}")):
            keys = parse_name(path.name)
            is_kind = path.name == suffix or path.name.endswith(f"_{suffix}")
            if is_kind and not path.name.startswith(".") and all(own.get(key) == keys[key] for key in keys):
                fitting.setdefault(len(keys), []).append(path)
        for n_keys in sorted(fitting, reverse=True):
            if len(fitting[n_keys]) > 1:
                names = ", ".join(path.name for path in fitting[n_keys])
                raise DataError(f"expected one *{suffix} of {name} in {place}, found {names}; keep one of them")
            yield fitting[n_keys][0]


def find_events(name: str, folder: Path, derivatives: Path, bids: Path | None) -> Path:
    """The events table of a recording, in the derivatives or the raw data set."""
    places = places_of(folder, derivatives) + (raw_places(name, bids) if bids is not None else [])
    for path in find_inherited(name, "events.tsv", places):
        return path
    where = f"{folder} or the data set {bids}" if bids is not None else f"{folder}"
    advice = "add it" if bids is not None else "add it, or name the raw BIDS data set that holds it (--bids FOLDER)"
    raise DataError(
        f"expected {recording_name(name)}_events.tsv, which says what was shown when, in {where}, found none; {advice}"
    )


def read_sidecar(path: Path) -> dict[str, Any]:
    """A JSON sidecar as a mapping; DataError for anything else."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # thousands of digits are no JSONDecodeError
        raise DataError(f"expected a JSON sidecar at {path}, found damage ({error}); write it anew") from error
    if not isinstance(content, dict):
        raise DataError(f"expected a JSON object in {path}, found a {type(content).__name__}")
    return content


def read_inherited(name: str, places: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    """A recording's sidecars merged, the nearest winning, and the file of each key."""
    content: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for path in find_inherited(name, "bold.json", places):
        for key, value in read_sidecar(path).items():
            if key not in content:
                content[key], origin[key] = value, path
    return content, origin


def read_positive(sidecar: dict[str, Any], key: str, path: Path) -> float:
    """A positive number of a sidecar; raises DataError for something else."""
    value = sidecar.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e9:
        found = "none" if value is None else repr(value)
        raise DataError(f"expected a positive {key} in seconds in {path}, found {found}; write it into the sidecar")
    return float(value)


def read_table(path: Path) -> dict[str, list[str]]:
    """A tab-separated table by column."""
    try:  # line by line: a lone quotation mark must not swallow the lines after it
        rows = [
            [value.strip() for value in next(csv.reader([line], delimiter="\t"), [])]
            for line in read_text(path).splitlines()
        ]
    except csv.Error as error:
        raise DataError(f"expected a tab-separated table in {path}, found damage ({error}); repair it") from error
    while rows and not any(rows[-1]):
        rows.pop()
    header = rows[0] if rows else []
    if not header or len(set(header)) != len(header) or "" in header:
        raise DataError(
            f"expected a tab-separated table whose columns have a name each in {path}, found the header {header}"
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(
                f"expected {len(header)} tab-separated values on line {number} of {path}, found {len(row)}; repair it"
            )
    return {name: [row[column] for row in rows[1:]] for column, name in enumerate(header)}


def read_events(path: Path, column: str = "stim_file") -> list[Event]:
    """The rows of a table that name a stimulus, by onset; a duration of 0 states no length."""
    table = read_table(path)
    missing = [name for name in ("onset", "duration", column) if name not in table]
    if missing:
        raise DataError(
            f"expected the columns onset, duration and {column} in {path}, found {', '.join(table)}; add "
            f"{', '.join(missing)}" + (", or name the column of the films (stim_column)" if column in missing else "")
        )
    events = []
    for number, (onset, duration, stimulus) in enumerate(
        zip(table["onset"], table["duration"], table[column], strict=True), start=2
    ):
        if is_missing(stimulus):
            continue
        onset_s = read_number(onset)
        duration_s = 0.0 if is_missing(duration) else read_number(duration)
        if not math.isfinite(onset_s) or not 0 <= duration_s < math.inf:
            raise DataError(
                f"expected an onset and a duration in seconds on line {number} of {path}, found '{onset}' and "
                f"'{duration}'; write n/a for a film shown to its end"
            )
        events.append(Event(onset_s, duration_s or None, stimulus))
    return sorted(events, key=lambda event: event.onset_s)


def read_number(text: str) -> float:
    """The number a field of a table holds; NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 as Excel writes it; DataError for anything else."""
    require_content(path, "a text file")
    try:
        content = path.read_bytes()
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"expected UTF-8 text in {path}, found something else ({error}); save it as UTF-8") from error
