"""Recordings with events that say which film was shown when, as a source.

Every showing of a film, in whatever run, is a repeat. Each run is cleaned and
standardised as a whole (`mindvideo.data.denoising`), and a showing's scans are read out
of it by their times.

Shapes: T volumes of a run, V voxels, n scans of a film.
"""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mindvideo.config import Data, Section
from mindvideo.data.denoising import clean_run, scan_times
from mindvideo.data.film_names import name_films, other_names
from mindvideo.data.segments import Remark, Run, Segment, Source
from mindvideo.data.showings import (
    Recording,
    ShownFilm,
    check_repeats,
    match_films,
    place_scans,
    refuse_shared_scans,
    split_films,
)
from mindvideo.data.store import listed, natural_key
from mindvideo.data.voxels import find_silent
from mindvideo.errors import DataError, SettingError

_CACHE_BYTES = 1_000_000_000

ReadRun = Callable[[Recording, np.ndarray, np.ndarray], np.ndarray]
"""Gives a run's volumes, float (T, V), for the source's vertices and the wanted ones."""


class EventSettings(Section):
    """Settings of every reader whose films are named by events."""

    stimuli: Path | None = Field(None, description="folder that the events' stimulus files lie in")
    test: tuple[str, ...] = Field((), description="test stimuli, by name with * and ?, or 'most-repeated'")
    stim_column: str = Field("stim_file", description="column of the events that names the film")
    high_pass_hz: float | None = Field(0.008, gt=0, description="cut-off of the high-pass filter; empty: none")
    resample: Literal["linear", "nearest", "mean"] = Field("linear", description="how volumes become scans")
    trim_start: bool = Field(False, description="drop first scans where a run began too late")
    trim_end: bool = Field(False, description="drop last scans where a run stopped too early")
    exclude: tuple[str, ...] = Field((), description="runs left out, by name, or RUN:STIMULUS")


def require_stimuli(data: Data) -> Path:
    """The folder of the films; DataError where there is none."""
    stimuli: Path | None = data.own.stimuli
    if stimuli is None or not stimuli.is_dir():
        raise DataError(
            f"expected the folder of the films, found {stimuli or 'none'}; give it as data.{data.source}.stimuli (--stimuli)"
        )
    return stimuli


def leave_out(called: Mapping[Path, tuple[str, ...]], exclude: Sequence[str]) -> list[Path]:
    """The recordings that are not excluded by any of their names."""
    whole = [pattern for pattern in exclude if ":" not in pattern]
    for pattern in whole:
        if not any(fnmatch.filter(names, pattern) for names in called.values()):
            runs = listed([names[0] for names in called.values()])
            raise SettingError(f"expected a run to exclude, one of {runs}, found '{pattern}'")
    kept = [path for path in called if not any(fnmatch.filter(called[path], pattern) for pattern in whole)]
    if not kept:
        raise DataError(f"expected a run that is not excluded, found all {len(called)} under exclude; shorten the list")
    return kept


class CleanedRuns:
    """Runs as they come out of `clean_run`; the last ones stay in memory, up to a gigabyte."""

    def __init__(self, high_pass_hz: float | None, read: ReadRun) -> None:
        self._high_pass_hz, self._read = high_pass_hz, read
        self._kept: OrderedDict[tuple[Path, bytes, bytes], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; not the runs held."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def read(self, recording: Recording, seen: np.ndarray, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The volumes ``seen``, bool (T,), of a run, cleaned by themselves, float32 (·, V)."""
        key = (recording.path, seen.tobytes(), wanted.tobytes())
        if key not in self._kept:
            self._kept[key] = self._clean(recording, seen, vertex, wanted)
            while len(self._kept) > 1 and sum(run.nbytes for run in self._kept.values()) > _CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _clean(self, recording: Recording, seen: np.ndarray, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        run = self._read(recording, vertex, wanted)
        run[:, find_silent(run, recording.path, wanted)] = 0
        try:
            return clean_run(run, recording.confounds.values, recording.tr_s, self._high_pass_hz, seen)
        except DataError as error:
            raise DataError(f"{recording.path}: {error}") from error


@dataclass(frozen=True)
class Showing:
    """One showing of a film; a call gives its scans at some vertices, float32 (n, V).

    ``seen`` are the volumes that cleaning and scaling may use, bool (T,); ``weights``
    (n, T) make scans of volumes and are zero outside of these.
    """

    recording: Recording
    seen: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    runs: CleanedRuns = field(repr=False)

    def __call__(self, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Read, clean, standardise, and place in time."""
        cleaned = self.runs.read(self.recording, self.seen, vertex, wanted)
        weights = self.weights[:, self.seen]
        used = np.flatnonzero(weights.any(axis=0))
        return (weights[:, used] @ cleaned[used].astype(np.float64)).astype(np.float32)


def source_of_events(bare: Source, recordings: list[Recording], data: Data, read: ReadRun) -> Source:
    """The source ``bare`` with segments of all films that the recordings' events name.

    ``data.own`` has the settings of `EventSettings`.
    """
    settings: EventSettings = data.own
    stimuli = require_stimuli(data)
    films, events_remarks = match_films(recordings, stimuli, settings.exclude)
    names = name_films([film.path for film in films])
    films = [replace(film, name=names[film.path]) for film in films]
    splits = split_films(films, data)
    films = [place_scans(replace(film, split=splits[film.path]), recordings, data) for film in films]
    films.sort(key=lambda film: (film.split == "test", natural_key(film.name)))
    check_repeats(films, data)
    refuse_shared_scans(films, recordings)
    made = _make_runs(recordings, films, CleanedRuns(settings.high_pass_hz, read))
    called = other_names({film.name: film.path for film in films})
    segments = tuple(
        Segment(film.name, film.split, film.file, film.n_scans, made[film.name], film.first,
                film.n_scans < film.n_whole, called[film.name])
        for film in films
    )  # fmt: skip
    used = sorted({index for film in films for index, _ in film.shown})
    files = dict.fromkeys(path for index in used for path in recordings[index].files)
    notes = _notes(recordings, films, made, data)
    return replace(
        bare,
        segments=segments,
        notes=notes | {"discover": notes["discover"] | bare.notes.get("discover", {})},
        files=(*files, *bare.files),
        roots={"stimuli": stimuli} | bare.roots,
        remarks=(*bare.remarks, *events_remarks, *_remarks(recordings, films)),
    )


def _make_runs(recordings: list[Recording], films: list[ShownFilm], cleaned: CleanedRuns) -> dict[str, tuple[Run, ...]]:
    """A run for every showing of every film.

    No run is cleaned with volumes that are not steady, unless these have regressors of
    their own. Where test films share a run with others, the others are cleaned without
    the volumes of test scans, so that no training value depends on them; the test films
    see the whole run.
    """
    of_test = [np.zeros(len(recording.volume_s), dtype=bool) for recording in recordings]
    for film in films:
        for (index, _), weights in zip(film.shown, film.weights, strict=True):
            of_test[index] |= weights.any(axis=0) & (film.split == "test")
    made = {}
    for film in films:
        runs = []
        for (index, event), weights in zip(film.shown, film.weights, strict=True):
            recording = recordings[index]
            seen = recording.confounds.is_steady | recording.confounds.fits_unsteady
            if film.split != "test":
                seen = seen & ~of_test[index]
            showing = Showing(recording, seen, weights, cleaned)
            first = int(np.flatnonzero(weights[0])[0])
            runs.append(Run(f"{recording.name}@{event.onset_s:g}s", recording.path, first, showing))
        made[film.name] = tuple(runs)
    return made


def _notes(
    recordings: list[Recording], films: list[ShownFilm], made: dict[str, tuple[Run, ...]], data: Data
) -> dict[str, dict[str, Any]]:
    settings: EventSettings = data.own
    offset_s, mixed = 0.0, set()
    for film in films:
        for (index, event), run in zip(film.shown, made[film.name], strict=True):
            recording = recordings[index]
            times = scan_times(event.onset_s, data.lag_s, film.n_whole, data.tr_s)[film.first :][: film.n_scans]
            nearest = np.abs(times[:, None] - recording.volume_s[None, :]).min(axis=1)
            offset_s = max(offset_s, float(nearest.max()))
            assert isinstance(run.read, Showing)
            if not (run.read.seen | ~recording.confounds.is_steady).all():
                mixed.add(recording.name)
    runs = {
        recording.name: {"tr_s": recording.tr_s, "first_volume_s": float(recording.volume_s[0]),
                         "volumes": len(recording.volume_s), "tr_from": recording.tr_from}
        for recording in recordings
    }  # fmt: skip
    columns = {recording.name: list(names) for recording in recordings if (names := recording.confounds.names)}
    return {
        "discover": {
            "source": data.source, "runs": runs,
            "test": sorted(film.path.as_posix() for film in films if film.split == "test"),
            "excluded": list(settings.exclude),
        },
        "denoise": {
            "confounds": columns, "high_pass_hz": settings.high_pass_hz, "trend": "linear",
            "fit": "each run by itself; training films without the volumes of test films in the same run",
            "runs_of_training_and_test": sorted(mixed),
        },
        "standardise": {"ddof": 1, "over": "the volumes of the run that the fit sees"},
        "trim": {
            "lag_s": data.lag_s,
            "showings": {film.path.as_posix(): [run.label for run in made[film.name]] for film in films},
            "n_scans": {film.path.as_posix(): film.n_scans for film in films},
            "first_scan": {film.path.as_posix(): film.first for film in films},
        },
        "resample": {"how": settings.resample, "tr_s": data.tr_s, "largest_offset_s": offset_s},
    }  # fmt: skip


def _remarks(recordings: list[Recording], films: list[ShownFilm]) -> tuple[Remark, ...]:
    unsteady, empty, elsewhere = [], [], []
    for recording in recordings:
        confounds = recording.confounds
        if not (confounds.is_steady.all() or confounds.fits_unsteady):
            unsteady.append(f"{recording.name} ({int((~confounds.is_steady).sum())})")
        empty += [f"{recording.name}:{name}" for name in confounds.empty]
        if recording.tr_from:
            elsewhere.append(f"{recording.name} ({recording.tr_s:g} s from {recording.tr_from})")
    cut = [film for film in films if film.n_scans < film.n_whole]
    return Remark.of({
        "runs whose first volumes are not steady and take no part in fit and scale": unsteady,
        "columns of confounds left out, which hold no value": empty,
        "runs whose sidecar does not state the TR": elsewhere,
        "films without the scans that some run lacks": [f"{film.name} ({film.n_whole - film.n_scans} of {film.n_whole})" for film in cut],
    })  # fmt: skip
