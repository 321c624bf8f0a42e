"""BIDS files: names, sidecars, tables, and the events that say which film was shown when.

BIDS 1.10 (bids-specification.readthedocs.io): file names are ``key-value`` pairs; a table is tab-separated with one
header line and ``n/a`` for what is missing; onsets count in seconds from the first volume of the run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindvideo.errors import DataError

MISSING = "n/a"
_DERIVED = ("space", "den", "res", "desc", "hemi")
"""Keys that say what was made of a recording, not which recording it is."""


@dataclass(frozen=True)
class Event:
    """One showing of a film: onset in seconds from the run's first volume, length (None where not stated), file."""

    onset_s: float
    duration_s: float | None
    stimulus: str


def parse_name(name: str) -> dict[str, str]:
    """The keys and values of a BIDS file name, ``{"sub": "01", "task": "movie", …}``; the suffix is left out."""
    pairs = (part.split("-", 1) for part in name.split(".", 1)[0].split("_"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def recording_name(name: str) -> str:
    """Which recording a file of fMRIPrep belongs to: ``sub-01_ses-2_task-movie_run-1``, without space and density."""
    return "_".join(f"{key}-{value}" for key, value in parse_name(name).items() if key not in _DERIVED)


def read_sidecar(path: Path) -> dict[str, Any]:
    """A JSON sidecar as a mapping.

    Raises
    ------
    DataError
        For a missing file, or one that is no JSON object.
    """
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise DataError(f"expected a JSON sidecar at {path}, found damage ({error}); write it anew") from error
    if not isinstance(content, dict):
        raise DataError(f"expected a JSON object in {path}, found a {type(content).__name__}")
    return content


def read_positive(sidecar: dict[str, Any], key: str, path: Path) -> float:
    """A positive number of a sidecar; raises DataError where it is missing or something else."""
    value = sidecar.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e9:
        found = "none" if value is None else repr(value)
        raise DataError(f"expected a positive {key} in seconds in {path}, found {found}; add it to the sidecar")
    return float(value)


def read_table(path: Path) -> dict[str, list[str]]:
    """A tab-separated table by column.

    Raises
    ------
    DataError
        For a missing or damaged file, rows of another length than the header, or a column that is there twice.
    """
    lines = _read_text(path).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    header = [name.strip() for name in lines[0].split("\t")] if lines else []
    if not header or len(set(header)) != len(header) or "" in header:
        raise DataError(
            f"expected a tab-separated table whose columns have a name each in {path}, found the header {header}"
        )
    rows = [[value.strip() for value in line.split("\t")] for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"expected {len(header)} tab-separated values on line {number} of {path}, found {len(row)}; repair it"
            )
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def find_events(recording: str, folder: Path, bids: Path | None) -> Path:
    """The events table of a recording: beside it, or in the raw data set, where a table may hold for many recordings.

    Parameters
    ----------
    recording : str
        See `recording_name`.
    folder : Path
        The recording's own folder in the derivatives.
    bids : Path, optional
        Root of the raw BIDS data set.

    Returns
    -------
    Path
        The nearest table none of whose keys contradicts the recording (the inheritance principle).

    Raises
    ------
    DataError
        If there is none, or two that are equally near.
    """
    own = parse_name(recording)
    folders = [folder]
    if bids is not None:
        subject = bids / f"sub-{own.get('sub', '')}"
        session = subject / f"ses-{own['ses']}" if "ses" in own else subject
        folders += dict.fromkeys([session / "func", session, subject, bids])
    for place in folders:
        fitting: dict[Path, int] = {}
        for path in sorted(place.glob("*events.tsv")):
            keys = parse_name(path.name)
            if all(own.get(key) == value for key, value in keys.items()):
                fitting[path] = len(keys)
        nearest = [path for path, n_keys in fitting.items() if n_keys == max(fitting.values())]
        if len(nearest) > 1:
            raise DataError(
                f"expected one events table of {recording} in {place}, found {', '.join(p.name for p in nearest)}"
            )
        if nearest:
            return nearest[0]
    where = f"{folder} or the data set {bids}" if bids is not None else f"{folder}"
    advice = "add it" if bids is not None else "add it, or name the raw BIDS data set that holds it (--bids FOLDER)"
    raise DataError(
        f"expected {recording}_events.tsv, which says what was shown when, in {where}, found none; {advice}"
    )


def read_events(path: Path, column: str = "stim_file") -> list[Event]:
    """The showings a table lists, in order of onset; rows without a stimulus file are left out.

    Raises
    ------
    DataError
        For a missing column, or an onset or a duration that is no number.
    """
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
        if stimulus in (MISSING, ""):
            continue
        onset_s = _number(onset)
        duration_s = None if duration == MISSING else _number(duration)
        if math.isnan(onset_s) or (duration_s is not None and not duration_s > 0):
            raise DataError(
                f"expected an onset and a positive duration in seconds on line {number} of {path}, "
                f"found '{onset}' and '{duration}'"
            )
        events.append(Event(onset_s, duration_s, stimulus))
    return sorted(events, key=lambda event: event.onset_s)


def _number(text: str) -> float:
    """The finite number a text stands for; NaN for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"expected {path.name} in {path.parent}, found no such file; add it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"expected UTF-8 text in {path}, found something else ({error}); repair it") from error
