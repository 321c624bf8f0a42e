"""Films and their showings: which film each event means, how many scans it fills, and which films are the test."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mindvideo.config import Data
from mindvideo.data.bids import Event
from mindvideo.data.denoising import recorded_scans, scan_times
from mindvideo.data.measuring import MIN_MEASURED_SCANS
from mindvideo.data.store import listed, natural_key
from mindvideo.data.video import SUFFIXES, probe
from mindvideo.errors import DataError, SettingError

MOST_REPEATED = "most-repeated"
"""Stands under ``test`` for the films that were shown more often than any other."""
LENGTH_TOLERANCE_S = 0.1
"""Stated lengths of a film's showings may differ by this much; encoders and stopwatches do."""


@dataclass(frozen=True)
class Recording:
    """One run: its name, its files, the times of its volumes in seconds, float64 (T,), and the events in it.

    Onsets count from the first volume; a volume's time is that of its slices after slice-time correction.
    """

    name: str
    path: Path
    tr_s: float
    volume_s: np.ndarray
    confounds: Path
    files: tuple[Path, ...]
    events: tuple[Event, ...]


Showings = dict[Path, list[tuple[int, Event]]]
"""The showings of each film, by its path below the stimulus folder: number of the recording, and event."""


def match_films(recordings: Sequence[Recording], stimuli: Path, exclude: Sequence[str]) -> Showings:
    """Find the film of every event.

    Parameters
    ----------
    recordings : sequence of Recording
    stimuli : Path
        The folder of the films. Events that name something else than a film (``.png``, ``.wav``, …) are left out.
    exclude : sequence of str
        Entries ``RUN:STIMULUS`` are showings that are left out; others are ignored.

    Raises
    ------
    DataError
        For a film that is not there, no film at all, or two films at one time.
    SettingError
        For an exclusion that excludes nothing.
    """
    single = [pattern.split(":", 1) for pattern in exclude if ":" in pattern]
    used: set[int] = set()
    showings: Showings = {}
    for index, recording in enumerate(recordings):
        onsets: set[float] = set()
        for event in recording.events:
            if Path(event.stimulus).suffix.lower() not in SUFFIXES:
                continue
            film = _locate(event.stimulus, stimuli, recording)
            hits = {
                number
                for number, (run, name) in enumerate(single)
                if fnmatch.fnmatchcase(recording.name, run) and _is_called(film, film.stem, name)
            }
            used |= hits
            if hits:
                continue
            if event.onset_s in onsets:
                raise DataError(
                    f"expected one film at a time in {recording.files[-1]}, found two with onset {event.onset_s:g} s; "
                    "repair the table"
                )
            onsets.add(event.onset_s)
            showings.setdefault(film, []).append((index, event))
    for number, (run, name) in enumerate(single):
        if number not in used:
            raise SettingError(f"expected a showing to exclude as RUN:STIMULUS, found none that is '{run}:{name}'")
    if not showings:
        tables = listed([recording.files[-1].name for recording in recordings])
        raise DataError(
            f"expected films ({', '.join(SUFFIXES)}) in the events {tables}, found none; "
            "name the column that holds them (stim_column)"
        )
    return showings


def _locate(stimulus: str, stimuli: Path, recording: Recording) -> Path:
    """Path of an event's film below the stimulus folder; BIDS writes it with or without ``stimuli/``."""
    stated = PurePosixPath(stimulus.replace("\\", "/"))
    tried = [stated]
    if stated.parts[:1] == ("stimuli",):
        tried.append(PurePosixPath(*stated.parts[1:]))
    for relative in tried:
        if not relative.is_absolute() and ".." not in relative.parts and (stimuli / relative).is_file():
            return Path(relative)
    raise DataError(
        f"expected the film {stimulus} of {recording.files[-1]} in {stimuli}, found no such file; "
        "add it or give another folder of stimuli"
    )


def name_films(showings: Iterable[Path]) -> dict[Path, str]:
    """Names of films in the store: letters, digits, points and dashes; each its own."""
    names: dict[Path, str] = {}
    owner: dict[str, Path] = {}
    for film in showings:
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", film.with_suffix("").as_posix()).strip("._") or "film"
        if name in owner:
            raise DataError(f"expected films whose names differ, found {owner[name]} and {film}; rename one of them")
        names[film], owner[name] = name, film
    return names


def _is_called(film: Path, name: str, pattern: str) -> bool:
    """Whether a pattern means a film: by its path, file name, stem, or name in the store."""
    return any(fnmatch.fnmatchcase(own, pattern) for own in (film.as_posix(), film.name, film.stem, name))


def split_films(showings: Showings, names: dict[Path, str], data: Data) -> dict[Path, str]:
    """Split of every film: ``test`` as told, the last of the others by name ``validation``, the rest ``train``.

    Raises
    ------
    SettingError
        If no test film is named, or one that is not there.
    DataError
        If too few films remain for training.
    """
    ordered = sorted(showings, key=lambda film: natural_key(names[film]))
    counts = {film: len(showings[film]) for film in ordered}
    most = [film for film in ordered if counts[film] == max(counts.values())]
    listing = listed([f"{names[film]} ({counts[film]}x)" for film in ordered], 20)
    patterns = data.fmriprep.test
    if not patterns:
        raise SettingError(
            f"expected the test stimuli, found none named among {listing}; give them by name (--test {names[most[0]]}), "
            f"or --test {MOST_REPEATED} for those shown most often"
        )
    test: set[Path] = set()
    for pattern in patterns:
        found = [film for film in ordered if _is_called(film, names[film], pattern)]
        if pattern == MOST_REPEATED:
            found = most if len(most) < len(ordered) else []
        if not found:
            raise SettingError(f"expected a test stimulus '{pattern}' among {listing}, found none; name others")
        test |= set(found)
    training = [film for film in ordered if film not in test]
    if len(training) <= data.validation_segments:
        raise DataError(
            f"expected more than {data.validation_segments} training stimuli (the last {data.validation_segments} "
            f"validate) besides the {len(test)} test stimuli, found {len(training)} of {listing}; name fewer test stimuli "
            "or lower data.validation_segments"
        )
    validation = set(training[len(training) - data.validation_segments :])
    return {film: "test" if film in test else "validation" if film in validation else "train" for film in ordered}


def check_repeats(showings: Showings, splits: dict[Path, str], lengths: dict[Path, int], data: Data) -> None:
    """A selection by reproducibility needs training films that were shown twice, and that last a few scans.

    Raises
    ------
    DataError
        If there are none; the way out is a choice by areas.
    """
    if data.selection == "all":
        return
    repeated = [film for film, shown in showings.items() if splits[film] == "train" and len(shown) >= 2]
    if len(repeated) < 2:
        raise DataError(
            f"expected at least 2 training stimuli shown at least twice for selection {data.selection}, found "
            f"{len(repeated)}; choose voxels by areas instead (selection all, areas visual or V1,V2,…)"
        )
    short = [film for film in repeated if lengths[film] < MIN_MEASURED_SCANS]
    if short:
        raise DataError(
            f"expected at least {MIN_MEASURED_SCANS} scans of each repeated training stimulus for selection "
            f"{data.selection}, which correlates repeats, found {lengths[short[0]]} of {short[0]}; choose voxels by "
            "areas instead (selection all, areas visual or V1,V2,…)"
        )


def count_scans(film: Path, shown: list[tuple[int, Event]], recordings: Sequence[Recording], data: Data) -> int:
    """How many scans belong to each showing of a film: whole TRs of the store that it lasts and that were recorded.

    Parameters
    ----------
    film : Path
    shown : list of (int, Event)
        Its showings, see `Showings`.
    recordings : sequence of Recording
    data : Data

    Raises
    ------
    DataError
        If the showings last unequally long, or longer than the film, or a run does not cover one of them.
    """
    film_s = probe(film).duration_s
    stated = [event.duration_s if event.duration_s is not None else film_s for _, event in shown]
    if max(stated) - min(stated) > LENGTH_TOLERANCE_S:
        raise DataError(
            f"expected showings of one length of {film}, found {min(stated):g} to {max(stated):g} s in the events; "
            "exclude those that were broken off"
        )
    if min(stated) > film_s + max(LENGTH_TOLERANCE_S, data.tr_s / 2):
        raise DataError(
            f"expected a film of {min(stated):g} s, as the events say, at {film}, found {film_s:.2f} s; "
            "supply the film that was shown"
        )
    n_scans = math.floor((min(*stated, film_s) + LENGTH_TOLERANCE_S) / data.tr_s + 1e-9)
    if n_scans < 1:
        raise DataError(
            f"expected a film of at least one scan ({data.tr_s:g} s) at {film}, found {min(stated):g} s shown; "
            "exclude it or lower data.tr_s"
        )
    return min(_count_recorded(film, recordings[index], event, n_scans, data) for index, event in shown)


def _count_recorded(film: Path, recording: Recording, event: Event, n_scans: int, data: Data) -> int:
    """Scans of a showing that its run covers; fewer than all only where the settings allow it."""
    times = scan_times(event.onset_s, data.lag_s, n_scans, data.tr_s)
    is_there = recorded_scans(times, recording.volume_s, data.tr_s, data.fmriprep.resample)
    if is_there.all():
        return n_scans
    first_s, last_s = float(recording.volume_s[0]), float(recording.volume_s[-1])
    span = f"volumes from second {first_s:g} to {last_s:g}"
    if not is_there[0]:
        raise DataError(
            f"expected a volume at second {times[0]:g} of {recording.path} for the first scan of {film.name} (onset "
            f"{event.onset_s:g} s, lag_s {data.lag_s:g}), found {span}; choose another data.lag_s or exclude "
            f"{recording.name}:{film.stem}"
        )
    if not data.fmriprep.trim_end:
        raise DataError(
            f"the run {recording.path} is too short: the last scan of {film.name} (onset {event.onset_s:g} s, {n_scans} "
            f"scans, lag_s {data.lag_s:g}) lies at second {times[-1]:g}, found {span}; drop such scans (trim_end) or "
            f"exclude {recording.name}:{film.stem}"
        )
    return int(np.argmin(is_there))
