"""fMRIPrep's CIFTI outputs with BIDS events: which films were shown when, and the scans that answer to them.

``sub-*/[ses-*/]func/*_task-TASK*_space-fsLR_den-91k_bold.dtseries.nii`` with ``_bold.json`` (RepetitionTime) and
``_desc-confounds_timeseries.tsv``; ``…_events.tsv`` beside them or in the raw data set. A film may be shown any number of
times, in one run or in several; every showing is one repeat.
"""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mindvideo.config import Data, Section
from mindvideo.data.bids import (
    find_events,
    parse_name,
    places_of,
    raw_places,
    read_events,
    read_inherited,
    read_positive,
    recording_name,
)
from mindvideo.data.denoising import clean_run, read_confounds, scan_times
from mindvideo.data.segments import Remark, Run, Segment, Source
from mindvideo.data.series import SeriesFile, read_header
from mindvideo.data.showings import (
    Film,
    Recording,
    check_repeats,
    match_films,
    name_films,
    other_names,
    place_scans,
    refuse_shared_scans,
    split_films,
)
from mindvideo.data.store import listed, natural_key
from mindvideo.data.voxels import find_silent
from mindvideo.errors import DataError, SettingError

_SUFFIX = "_bold.dtseries.nii"
_SUFFIXES = (_SUFFIX, f"{_SUFFIX}.gz")
_IMAGES = ("_bold.nii", "_bold.nii.gz", "_bold.func.gii", *_SUFFIXES)
_CACHE_BYTES = 1_000_000_000
_VARIANTS = ("desc", "echo", "part", "res", "rec", "proc")
"""Keys that tell files of one recording apart."""
_LONGEST_TR_S = 30.0


class Settings(Section):
    """How fMRIPrep's outputs become scans of films (``data.fmriprep``; ``data.raw`` is the derivatives)."""

    stimuli: Path | None = Field(None, description="folder that the events' stimulus files lie in")
    bids: Path | None = Field(None, description="raw BIDS data set with the events; empty: they lie in the derivatives")
    task: str | None = Field(None, description="BIDS task label; * and ? stand for anything")
    participant: str | int | None = Field(
        None,
        description="BIDS subject label; empty where there is one subject",
        json_schema_extra={"option": "--subject"},
    )
    test: tuple[str, ...] = Field((), description="test stimuli, by name with * and ?, or 'most-repeated'")
    stim_column: str = Field("stim_file", description="column of the events that names the film")
    confounds: tuple[str, ...] = Field(
        ("trans_?", "rot_?", "csf", "white_matter"), description="columns that are regressed out; * and ? allowed"
    )
    high_pass_hz: float | None = Field(0.008, gt=0, description="cut-off of the cosine high-pass filter; empty: none")
    resample: Literal["linear", "nearest", "mean"] = Field("linear", description="how volumes become scans of a film")
    trim_start: bool = Field(False, description="drop the first scans of a film where a run began too late")
    trim_end: bool = Field(False, description="drop the last scans of a film where a run stopped too early")
    exclude: tuple[str, ...] = Field((), description="runs left out (sub-01_task-movie_run-2), or RUN:STIMULUS")


class CleanedRuns:
    """Runs as they come out of `clean_run`; the last ones stay in memory, up to a gigabyte."""

    def __init__(self, high_pass_hz: float | None) -> None:
        self._high_pass_hz = high_pass_hz
        self._kept: OrderedDict[tuple[Path, bytes, bytes], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; not the runs held."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def read(self, recording: Recording, seen: np.ndarray, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The volumes ``seen``, bool (T,), of a run at the wanted positions, cleaned on themselves, float32 (·, V)."""
        key = (recording.path, seen.tobytes(), wanted.tobytes())
        if key not in self._kept:
            self._kept[key] = self._clean(recording, seen, vertex, wanted)
            while len(self._kept) > 1 and sum(run.nbytes for run in self._kept.values()) > _CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _clean(self, recording: Recording, seen: np.ndarray, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        file = SeriesFile(recording.path)
        if not np.array_equal(file.header.vertex, vertex) or file.header.n_volumes != len(recording.volume_s):
            raise DataError(f"expected {recording.path} as it was a moment ago, found other axes; was it replaced?")
        run = file.take(wanted).T
        run[:, find_silent(run, recording.path, wanted)] = 0
        try:
            return clean_run(run, recording.confounds.values, recording.tr_s, self._high_pass_hz, seen)
        except DataError as error:
            raise DataError(f"{recording.path}: {error}") from error


@dataclass(frozen=True)
class Showing:
    """One showing of a film: calling it with a file's and the wanted vertices gives its scans, float32 (n, V).

    ``seen`` are the volumes of the run that cleaning and scaling may use, bool (T,); ``weights`` (n, T) make scans of
    volumes and are zero outside of them.
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


def settle(derivatives: Path, data: Data) -> Data:
    """The settings with the TR of the subject's first recording where none is stated."""
    if data.tr_s:
        return data
    _, paths, _ = _find_files(derivatives, data)
    return data.model_copy(update={"tr_s": _read_timing(paths[0], derivatives, data).tr_s})


def discover(derivatives: Path, data: Data) -> Source:
    """Find and match recordings, events and films of one subject, and check them from headers and tables alone.

    Raises
    ------
    DataError
        For anything missing or contradictory.
    SettingError
        Where no film can be told to be the test.
    """
    settings: Settings = data.own
    stimuli = settings.stimuli
    if stimuli is None or not stimuli.is_dir():
        raise DataError(
            f"expected the folder of the films, found {stimuli or 'none'}; give it as data.fmriprep.stimuli (--stimuli)"
        )
    subject, paths, remarks = _find_files(derivatives, data)
    recordings = [_read_recording(path, derivatives, data) for path in paths]
    vertex = _common_vertices(recordings)
    films, events_remarks = match_films(recordings, stimuli, settings.exclude)
    names = name_films([film.path for film in films])
    films = [replace(film, name=names[film.path]) for film in films]
    splits = split_films(films, data)
    films = [place_scans(replace(film, split=splits[film.path]), recordings, data) for film in films]
    films.sort(key=lambda film: (film.split == "test", natural_key(film.name)))
    check_repeats(films, data)
    refuse_shared_scans(films, recordings)
    made, called = _make_runs(recordings, films, data), other_names(films)
    segments = [
        Segment(film.name, film.split, film.file, film.n_scans, made[film.name], film.first,
                film.n_scans < film.n_whole, called[film.name])
        for film in films
    ]  # fmt: skip
    used = sorted({index for film in films for index, _ in film.shown})
    return Source(
        derivatives, subject, tuple(segments), vertex, _notes(recordings, films, made, data),
        files=tuple(dict.fromkeys(path for index in used for path in recordings[index].files)),
        roots={"stimuli": stimuli} | ({"bids": settings.bids} if settings.bids is not None else {}),
        remarks=(*remarks, *events_remarks, *_remarks(recordings, films, derivatives, data)),
    )  # fmt: skip


def _make_runs(recordings: list[Recording], films: list[Film], data: Data) -> dict[str, tuple[Run, ...]]:
    """A run for every showing of every film.

    No run is cleaned and scaled with volumes that are not steady, unless these have regressors of their own. Where test
    films share a run with others, the others are cleaned and scaled without the volumes of test scans, so that no
    training value depends on them; the test films see the whole run.
    """
    cleaned = CleanedRuns(data.own.high_pass_hz)
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


def _common_vertices(recordings: list[Recording]) -> np.ndarray:
    """The cortical positions of all files, int32 (N,); they must agree."""
    vertex = read_header(recordings[0].path).vertex
    for recording in recordings[1:]:
        found = read_header(recording.path).vertex
        if not np.array_equal(found, vertex):
            raise DataError(
                f"expected the {len(vertex)} cortical vertices of {recordings[0].path} in {recording.path}, found "
                f"{len(found)} that differ; use recordings of one pipeline"
            )
    return vertex


def _notes(
    recordings: list[Recording], films: list[Film], made: dict[str, tuple[Run, ...]], data: Data
) -> dict[str, dict[str, Any]]:
    """What was found, and how volumes became scans."""
    settings: Settings = data.own
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
    columns = {recording.name: list(recording.confounds.names) for recording in recordings if settings.confounds}
    return {
        "discover": {
            "source": "fmriprep", "task": settings.task, "runs": runs,
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


def _remarks(recordings: list[Recording], films: list[Film], derivatives: Path, data: Data) -> list[Remark]:
    """What was left out of the runs, and what was taken from where it is not expected."""
    unsteady, empty, elsewhere = [], [], []
    for recording in recordings:
        confounds = recording.confounds
        if not (confounds.is_steady.all() or confounds.fits_unsteady):
            unsteady.append(f"{recording.name} ({int((~confounds.is_steady).sum())})")
        empty += [f"{recording.name}:{name}" for name in confounds.empty]
        if recording.tr_from:
            elsewhere.append(f"{recording.name} ({recording.tr_s:g} s from {recording.tr_from})")
    trimmed = [f"{film.name} ({film.n_whole - film.n_scans} of {film.n_whole})" for film in films
               if film.n_scans < film.n_whole]  # fmt: skip
    found = {
        "runs whose first volumes are not steady and take no part in fit and scale": unsteady,
        "columns of confounds left out, which hold no value": empty,
        "runs whose sidecar does not state the TR": elsewhere,
        "films without the scans that some run lacks": trimmed,
    }
    return [Remark(text, tuple(names)) for text, names in found.items() if names]


def _find_files(derivatives: Path, data: Data) -> tuple[str, list[Path], list[Remark]]:
    """The subject's name, one file for each recording of the task in natural order, and what was left out."""
    settings: Settings = data.own
    if not derivatives.is_dir():
        raise DataError(f"expected fMRIPrep's outputs in {derivatives}, found no folder; give the one with sub-*")
    if settings.task is None:
        raise SettingError("expected the task of the films, found none; give it as data.fmriprep.task (--task)")
    files = [path for pattern in ("sub-*/func/*", "sub-*/ses-*/func/*") for path in derivatives.glob(pattern)]
    named = [
        (path, parse_name(path.name)) for path in files if path.name.endswith(_IMAGES) and not path.name.startswith(".")
    ]
    of_task = [(path, keys) for path, keys in named if fnmatch.fnmatchcase(keys.get("task", ""), settings.task)]
    if not of_task:
        tasks = sorted({keys["task"] for _, keys in named if "task" in keys})
        raise DataError(
            f"expected recordings of task {settings.task} below {derivatives}/sub-*/[ses-*/]func, found the tasks "
            f"{', '.join(tasks) or 'none'}; give one of these"
        )
    subject = _find_subject({keys["sub"] for _, keys in of_task if "sub" in keys}, derivatives, data)
    own = [path for path, keys in of_task if keys.get("sub") == subject]
    wanted = {"space": "fsLR", "den": "91k"}
    chosen = [path for path in own if path.name.endswith(_SUFFIXES) and wanted.items() <= parse_name(path.name).items()]
    if not chosen:
        spaces = sorted({_space(path) for path in own})
        raise DataError(
            f"expected recordings *_space-fsLR_den-91k{_SUFFIX} of sub-{subject} in {derivatives}, found only "
            f"{', '.join(spaces)}; run fMRIPrep with --cifti-output 91k"
        )
    chosen.sort(key=lambda path: natural_key(path.as_posix()))
    kept = _without(chosen, settings.exclude)
    single = _one_of_each(kept)
    others = tuple(path.name for path in kept if path not in single)
    excluded = tuple(recording_name(path.name) for path in chosen if path not in kept)
    remarks = [
        Remark("runs left out, as told under exclude", excluded),
        Remark("files left out, which are other versions of a recording", others),
    ]
    return f"sub-{subject}", single, [remark for remark in remarks if remark.names]


def _find_subject(labels: set[str], derivatives: Path, data: Data) -> str:
    """The label of the subject that the settings mean."""
    subjects = sorted(labels, key=natural_key)
    stated = data.own.participant
    default = subjects[0] if len(subjects) == 1 else ""
    subject = str(default if stated is None else stated).removeprefix("sub-")
    if isinstance(stated, int) and subject not in subjects:  # 1 for a label of 01
        alike = [label for label in subjects if label.isdigit() and int(label) == stated]
        subject = alike[0] if len(alike) == 1 else subject
    if subject not in subjects:
        found = f"sub-{subject}" if subject else f"{len(subjects)} subjects"
        raise DataError(
            f"expected one of the subjects {', '.join(subjects)} with task {data.own.task} in {derivatives}, "
            f"found {found}; give one (--subject)"
        )
    return subject


def _one_of_each(paths: list[Path]) -> list[Path]:
    """One file for each recording: fMRIPrep's own, of all echoes together, of the magnitude."""
    groups: dict[frozenset[tuple[str, str]], list[Path]] = {}
    for path in paths:
        keys = {key: value for key, value in parse_name(path.name).items() if key not in _VARIANTS}
        groups.setdefault(frozenset(keys.items()), []).append(path)
    chosen = []
    for group in groups.values():
        usual = {"desc": ("preproc",), "part": ("mag",)}
        plain = [
            path
            for path in group
            if all(value in usual.get(key, ()) for key, value in parse_name(path.name).items() if key in _VARIANTS)
        ]
        kept = plain if len(plain) == 1 else group
        if len(kept) > 1:
            raise DataError(
                f"expected one file for each recording in {group[0].parent}, found {listed([p.name for p in kept])}; "
                "list the others under exclude (data.fmriprep.exclude, --exclude), by file name with * and ?"
            )
        chosen += kept
    return chosen


def _space(path: Path) -> str:
    """What a recording is given in, in words."""
    keys = parse_name(path.name)
    kind = path.name.split("_bold.", 1)[1]
    place = "_".join(f"{key}-{keys[key]}" for key in ("space", "den", "hemi") if key in keys) or "native space"
    return f"{place} ({kind})"


def _without(paths: list[Path], exclude: tuple[str, ...]) -> list[Path]:
    """The recordings that are not excluded as a whole, by name of the recording or of the file."""
    whole = [pattern for pattern in exclude if ":" not in pattern]
    called = {path: (recording_name(path.name), path.name) for path in paths}
    for pattern in whole:
        if not any(fnmatch.filter(names, pattern) for names in called.values()):
            runs = listed([names[0] for names in called.values()])
            raise SettingError(f"expected a run to exclude, one of {runs}, found '{pattern}'")
    kept = [path for path in paths if not any(fnmatch.filter(called[path], pattern) for pattern in whole)]
    if not kept:
        raise DataError(f"expected a run that is not excluded, found all {len(paths)} under exclude; shorten the list")
    return kept


@dataclass(frozen=True)
class _Timing:
    """The TR of a run, the time of its first volume, and the files that say so; ``tr_from`` where not its own sidecar."""

    tr_s: float
    start_s: float
    n_volumes: int
    files: tuple[Path, ...]
    tr_from: str


def _read_timing(path: Path, derivatives: Path, data: Data) -> _Timing:
    """TR and slice timing from the sidecars (its own, inherited, the raw data set's), else the TR of the header."""
    header = read_header(path)
    sidecar, origin = read_inherited(path.name, places_of(path.parent, derivatives))
    if "RepetitionTime" not in sidecar and data.own.bids is not None:
        raw, raw_origin = read_inherited(path.name, raw_places(path.name, data.own.bids))
        if "RepetitionTime" in raw:
            sidecar["RepetitionTime"], origin["RepetitionTime"] = raw["RepetitionTime"], raw_origin["RepetitionTime"]
    tr_s, tr_from = header.tr_s, "its header"
    if "RepetitionTime" in sidecar:
        stating = origin["RepetitionTime"]
        tr_s = read_positive(sidecar, "RepetitionTime", stating)
        tr_from = "" if parse_name(stating.name) == parse_name(path.name) else stating.name
    if abs(tr_s - header.tr_s) > 1e-3:
        raise DataError(
            f"expected the TR of {tr_s:g} s that {origin['RepetitionTime'].name} states in {path}, found {header.tr_s:g} s; "
            "correct the one that is wrong (both are in seconds), or exclude the run if the two are not of one"
        )
    if tr_s > _LONGEST_TR_S:
        raise DataError(
            f"expected a TR of at most {_LONGEST_TR_S:g} s in {path}, found {tr_s:g} s, perhaps milliseconds; state "
            "RepetitionTime in a sidecar and correct the header"
        )
    start_s = 0.0
    if sidecar.get("SliceTimingCorrected") is True and sidecar.get("StartTime", 0) != 0:
        start_s = read_positive(sidecar, "StartTime", origin["StartTime"])
    return _Timing(tr_s, start_s, header.n_volumes, tuple(dict.fromkeys(origin.values())), tr_from)


def _read_recording(path: Path, derivatives: Path, data: Data) -> Recording:
    """Header, sidecars, events and confounds of one run."""
    settings: Settings = data.own
    timing = _read_timing(path, derivatives, data)
    if timing.n_volumes < 2:
        raise DataError(f"expected a run of several volumes at {path}, found {timing.n_volumes}; exclude it")
    name = recording_name(path.name)
    table = path.with_name(f"{name}_desc-confounds_timeseries.tsv")
    older = path.with_name(f"{name}_desc-confounds_regressors.tsv")
    table = older if older.is_file() and not table.is_file() else table
    confounds = read_confounds(table, settings.confounds, timing.n_volumes)
    events_path = find_events(path.name, path.parent, derivatives, settings.bids)
    events = read_events(events_path, settings.stim_column)
    files = (*timing.files, *((table,) if table.is_file() else ()), events_path)
    volume_s = timing.start_s + np.arange(timing.n_volumes) * timing.tr_s
    return Recording(
        name, path, timing.tr_s, volume_s, confounds, events_path, tuple(events), files, tr_from=timing.tr_from
    )
