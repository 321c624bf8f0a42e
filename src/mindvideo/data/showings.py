"""Films and their showings: how many scans they fill, and which are the test."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from mindvideo.config import Data
from mindvideo.data.bids import Event
from mindvideo.data.denoising import Confounds, covered_scans, resampling_weights, scan_times
from mindvideo.data.film_names import is_called, locate_film
from mindvideo.data.measuring import MIN_MEASURED_SCANS
from mindvideo.data.segments import Remark, frame_times, name_splits
from mindvideo.data.store import listed, natural_key
from mindvideo.data.video import probe
from mindvideo.errors import DataError, SettingError

MOST_REPEATED = "most-repeated"
"""In ``test``, stands for the films that were shown most often."""
LENGTH_TOLERANCE_S = 0.5
"""How far logged lengths may be off."""


@dataclass(frozen=True)
class Recording:
    """One run; ``volume_s`` are the times of its volumes in seconds, float64 (T,).

    Onsets count from the first volume; ``tr_from`` says where the TR is stated, if elsewhere.
    """

    name: str
    path: Path
    tr_s: float
    volume_s: np.ndarray
    confounds: Confounds
    events_path: Path
    events: tuple[Event, ...]
    files: tuple[Path, ...]
    tr_from: str = ""


@dataclass(frozen=True)
class ShownFilm:
    """A film that was shown, by its path below the stimulus folder.

    ``shown`` are its showings: index of the recording, and event. Each has the scans
    ``first`` to ``first + n_scans`` of the film's ``n_whole``; ``weights`` (n_scans, T)
    make them of a run's volumes.
    """

    path: Path
    file: Path
    duration_s: float
    shown: tuple[tuple[int, Event], ...] = ()
    name: str = ""
    split: str = ""
    first: int = 0
    n_scans: int = 0
    n_whole: int = 0
    weights: tuple[np.ndarray, ...] = field(default=(), repr=False)


def match_films(
    recordings: Sequence[Recording], stimuli: Path, exclude: Sequence[str]
) -> tuple[list[ShownFilm], tuple[Remark, ...]]:
    """The films that were shown, with their showings, and what was left out or joined.

    Entries ``RUN:STIMULUS`` of ``exclude`` are showings that are left out; others are ignored.
    """
    films: dict[Path, ShownFilm] = {}
    located: dict[str, Path | None] = {}
    no_films: Counter[str] = Counter()
    lengthless, joined, excluded = list[str](), list[str](), list[str]()
    unused = {pattern for pattern in exclude if ":" in pattern}
    for index, recording in enumerate(recordings):
        rows: dict[Path, list[Event]] = {}
        for event in recording.events:
            if event.stimulus not in located:
                located[event.stimulus] = locate_film(event.stimulus, stimuli, recording.events_path)
            path = located[event.stimulus]
            if path is None:
                no_films[event.stimulus] += 1
                continue
            hits = {pattern for pattern in exclude if _excludes(pattern, recording.name, path)}
            unused -= hits
            if hits:
                excluded.append(f"{recording.name}:{path.as_posix()}")
                continue
            films.setdefault(path, ShownFilm(path, stimuli / path, probe(stimuli / path).duration_s))
            rows.setdefault(path, []).append(event)
        for path, events in rows.items():
            name = f"{recording.name}:{path.as_posix()}"
            showings = _join_shots(events, films[path], recording)
            lengthless += [name] if any(event.duration_s is None for event in events) else []
            joined += [name] if len(showings) < len(events) else []
            shown = tuple((index, event) for event in showings)
            films[path] = replace(films[path], shown=films[path].shown + shown)
    for pattern in sorted(unused):
        raise SettingError(f"expected a showing to exclude as RUN:STIMULUS, found none that is '{pattern}'")
    if not films:
        tables = listed([recording.events_path.name for recording in recordings])
        named = f", only {listed(sorted(no_films))}" if no_films else ""
        raise DataError(
            f"expected films in the events {tables}, found none{named}; name the column that holds them (stim_column)"
        )
    for index, recording in enumerate(recordings):
        _refuse_overlap(films.values(), index, recording)
    remarks = {
        "stimuli left out, which are no films": [f"{name} ({n}x)" for name, n in sorted(no_films.items())],
        "showings left out, as told under exclude": excluded,
        "showings without a logged length, taken to last as long as their films": lengthless,
        "films with rows for shots or annotations, joined to one showing each": joined,
    }
    return list(films.values()), Remark.of(remarks)


def _excludes(pattern: str, run: str, film: Path) -> bool:
    run_pattern, colon, name = pattern.partition(":")
    return bool(colon) and fnmatch.fnmatchcase(run, run_pattern) and is_called(film, film.stem, name)


def _join_shots(events: list[Event], film: ShownFilm, recording: Recording) -> list[Event]:
    """The showings that a run's rows of one film stand for; adjacent or nested rows are one.

    Raises DataError for rows that are parts of one showing with gaps between them.
    """
    showings: list[Event] = []
    for event in events:
        if showings and event.duration_s is not None:
            last = showings[-1]
            length_s = film.duration_s if last.duration_s is None else last.duration_s
            joined_s = max(length_s, event.onset_s + event.duration_s - last.onset_s)
            is_near = event.onset_s <= last.onset_s + length_s + LENGTH_TOLERANCE_S
            is_part = min(event.duration_s, length_s) < film.duration_s - LENGTH_TOLERANCE_S
            if is_near and is_part and joined_s <= film.duration_s + LENGTH_TOLERANCE_S:
                showings[-1] = Event(last.onset_s, joined_s, event.stimulus)
                continue
        showings.append(event)
    parts = [event.duration_s or film.duration_s for event in showings]
    is_parted = max(parts) < film.duration_s - LENGTH_TOLERANCE_S and sum(parts) <= film.duration_s + LENGTH_TOLERANCE_S
    if len(parts) > 1 and is_parted:
        raise DataError(
            f"expected a row for each showing of {film.path.as_posix()} in {recording.events_path}, found {len(parts)} rows "
            f"that fit into its {film.duration_s:.2f} s with gaps between them, as of shots or annotations; give one row "
            "with onset and duration of the whole showing, or a film of its own for each part"
        )
    return showings


def _refuse_overlap(films: Iterable[ShownFilm], index: int, recording: Recording) -> None:
    shown = [(event, film) for film in films for number, event in film.shown if number == index]
    shown.sort(key=lambda item: item[0].onset_s)
    for (first, film), (second, other) in pairwise(shown):
        end_s = first.onset_s + (first.duration_s or film.duration_s)
        if end_s > second.onset_s + LENGTH_TOLERANCE_S:
            way_out = f"or leave one out: exclude {recording.name}:{other.path.as_posix()}"
            raise DataError(
                f"expected one film at a time in {recording.events_path}, found {film.path.as_posix()} from second "
                f"{first.onset_s:g} to {end_s:g} and {other.path.as_posix()} from second {second.onset_s:g}; repair the "
                f"table, {'with a row for each showing' if other is film else way_out}"
            )


def split_films(films: Sequence[ShownFilm], data: Data) -> dict[Path, str]:
    """Split of every film: ``test`` as stated, of the others the last validate."""
    ordered = sorted(films, key=lambda film: natural_key(film.name))
    most = max(len(film.shown) for film in ordered)
    often = [film for film in ordered if len(film.shown) == most]
    listing = listed([f"{film.name} ({len(film.shown)}x)" for film in ordered], 20)
    patterns = data.own.test
    if not patterns:
        raise SettingError(
            f"expected the test stimuli, found none named among {listing}; give them by name (--test {often[0].name}), "
            f"or --test {MOST_REPEATED} for those shown most often"
        )
    test: set[Path] = set()
    for pattern in patterns:
        found = [film.path for film in ordered if is_called(film.path, film.name, pattern)]
        if pattern == MOST_REPEATED:
            found = [film.path for film in often] if len(often) < len(ordered) else []
        if not found:
            raise SettingError(f"expected a test stimulus '{pattern}' among {listing}, found none; name others")
        test |= set(found)
    return name_splits([film.path for film in ordered if film.path not in test], test, data, f"among {listing}")


def check_repeats(films: Sequence[ShownFilm], data: Data) -> None:
    """Raise DataError unless voxels can be selected by training films."""
    if data.selection == "all":
        return
    repeated = [film for film in films if film.split == "train" and len(film.shown) >= 2]
    short = [f"{film.n_scans} scans of {film.path}" for film in repeated if film.n_scans < MIN_MEASURED_SCANS]
    if len(repeated) < 2 or short:
        raise DataError(
            f"expected at least 2 training stimuli shown at least twice for selection {data.selection}, which correlates "
            f"repeats, of at least {MIN_MEASURED_SCANS} scans each, found {short[0] if short else len(repeated)}; choose voxels "
            "by areas instead (selection all, areas visual or V1,V2,…)"
        )


def place_scans(film: ShownFilm, recordings: Sequence[Recording], data: Data) -> ShownFilm:
    """The scans of a film that every showing has, with the weights of each run's volumes."""
    n_whole = _count_whole(film, data)
    start, stop, every = 0, n_whole, []
    for index, event in film.shown:
        recording = recordings[index]
        times = scan_times(event.onset_s, data.lag_s, n_whole, data.tr_s)
        how, steady = data.own.resample, recording.confounds.is_steady
        is_there = covered_scans(times, recording.volume_s, data.tr_s, how)
        weights = np.zeros((n_whole, len(recording.volume_s)))
        weights[is_there] = resampling_weights(times[is_there], recording.volume_s, data.tr_s, how)
        is_there &= ~weights[:, ~steady].any(axis=1)
        every.append(weights)
        if is_there.all():
            continue
        covered = np.flatnonzero(is_there)
        found = f"steady volumes from second {recording.volume_s[steady][0]:g} to {recording.volume_s[steady][-1]:g}"
        shown = f"{film.path.as_posix()} (onset {event.onset_s:g} s, {n_whole} scans, lag_s {data.lag_s:g})"
        way_out = f"exclude {recording.name}:{film.path.stem}"
        if not len(covered):
            raise DataError(f"expected scans of {shown} in the run {recording.path}, found only {found}; {way_out}")
        if covered[0] > 0 and not data.own.trim_start:
            raise DataError(
                f"expected the first scan of {shown} at second {times[0]:g} of the run {recording.path}, found {found}; "
                f"drop the scans it lacks (trim_start, --trim-start) or {way_out}"
            )
        if covered[-1] < n_whole - 1 and not data.own.trim_end:
            raise DataError(
                f"expected the last scan of {shown} at second {times[-1]:g} of the run {recording.path}, which is too "
                f"short, found {found}; drop the scans it lacks (trim_end, --trim-end) or {way_out}"
            )
        start, stop = max(start, int(covered[0])), min(stop, int(covered[-1]) + 1)
    if start >= stop:
        raise DataError(
            f"expected scans of {film.path.as_posix()} that every showing has, found none; exclude showings that began "
            "late or broke off (exclude RUN:STIMULUS)"
        )
    kept = tuple(part[start:stop] for part in every)
    return replace(film, first=start, n_scans=stop - start, n_whole=n_whole, weights=kept)


def _count_whole(film: ShownFilm, data: Data) -> int:
    """How many scans a whole showing of a film fills, by the events and the film's length.

    A logged length near the film's, or up to half a scan above it, counts as the film's.
    """
    film_s = film.duration_s
    longest_s = film_s + max(LENGTH_TOLERANCE_S, data.tr_s / 2)
    stated = [film_s if event.duration_s is None else event.duration_s for _, event in film.shown]
    if min(stated) > longest_s:
        raise DataError(
            f"expected a film of {min(stated):g} s, as the events say, at {film.file}, found {film_s:.2f} s; "
            "supply the film that was shown"
        )
    shown = [film_s if film_s - LENGTH_TOLERANCE_S <= length <= longest_s else length for length in stated]
    if max(shown) - min(shown) > LENGTH_TOLERANCE_S:
        raise DataError(
            f"expected showings of one length of {film.file}, found {min(stated):g} to {max(stated):g} s in the events; "
            "exclude those that were broken off (exclude RUN:STIMULUS)"
        )
    n_scans = math.floor((min(*shown, film_s) + min(LENGTH_TOLERANCE_S, data.tr_s / 4)) / data.tr_s + 1e-9)
    while n_scans and frame_times(n_scans, data.tr_s, data.fps)[-1, -1] >= film_s:
        n_scans -= 1
    if n_scans < 1:
        raise DataError(
            f"expected a film of at least one scan ({data.tr_s:g} s) at {film.file}, found {min(stated):g} s shown; "
            "exclude it or lower data.tr_s"
        )
    return n_scans


def refuse_shared_scans(films: Sequence[ShownFilm], recordings: Sequence[Recording]) -> None:
    """Raise DataError if a volume goes into scans of both a test film and another one."""
    test = {film.path.as_posix() for film in films if film.split == "test"}
    for index, recording in enumerate(recordings):
        used: dict[str, np.ndarray] = {}
        for film in films:
            every = zip(film.shown, film.weights, strict=True)
            own = [weights.any(axis=0) for (number, _), weights in every if number == index]
            used |= {film.path.as_posix(): np.any(own, axis=0)} if own else {}
        for name, other in product(sorted(test & used.keys()), sorted(used.keys() - test)):
            shared = np.flatnonzero(used[name] & used[other])
            if len(shared):
                raise DataError(
                    f"expected no volume that test and training share, found {len(shared)} (e.g. at second "
                    f"{recording.volume_s[shared[0]]:g} of {recording.path}) of the test film {name} and of {other}; "
                    f"take single volumes (resample nearest, --resample nearest) or exclude {recording.name}:{other}"
                )
