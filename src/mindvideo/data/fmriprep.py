"""fMRIPrep's CIFTI outputs with BIDS events: which films were shown when, and the scans that answer to them.

``sub-*/[ses-*/]func/*_task-TASK*_space-fsLR_den-91k_bold.dtseries.nii`` with ``_bold.json`` (RepetitionTime) and
``_desc-confounds_timeseries.tsv``; ``…_events.tsv`` beside them or in the raw data set. A film may be shown any number of
times, in one run or in several; every showing is one repeat.
"""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.config import Data
from mindvideo.data.bids import find_events, parse_name, read_events, read_positive, read_sidecar, recording_name
from mindvideo.data.captions import Captioner
from mindvideo.data.cifti import read_cortex, read_header
from mindvideo.data.denoising import clean_run, read_confounds, resampling_weights, scan_times
from mindvideo.data.pool import Pool
from mindvideo.data.preparation import Progress, Run, Segment, Source, prepare_segments
from mindvideo.data.showings import (
    Recording,
    Showings,
    check_repeats,
    count_scans,
    match_films,
    name_films,
    split_films,
)
from mindvideo.data.store import Store, listed, natural_key
from mindvideo.data.voxels import check_run
from mindvideo.errors import DataError, SettingError

_SUFFIX = "_bold.dtseries.nii"
_IMAGES = ("_bold.nii", "_bold.nii.gz", "_bold.func.gii", _SUFFIX)
_CACHE_BYTES = 1_000_000_000


class CleanedRuns:
    """Runs as they come out of `clean_run`; the last ones stay in memory, up to a gigabyte.

    Parameters
    ----------
    confounds : sequence of str
        Patterns of column names.
    high_pass_hz : float or None
    """

    def __init__(self, confounds: tuple[str, ...], high_pass_hz: float | None) -> None:
        self._confounds, self._high_pass_hz = confounds, high_pass_hz
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
        content = read_cortex(recording.path)
        if not np.array_equal(content.vertex, vertex) or content.n_volumes != len(recording.volume_s):
            raise DataError(f"expected {recording.path} as it was a moment ago, found other axes; was it replaced?")
        run = content.data[:, np.searchsorted(vertex, wanted)]
        check_run(run, recording.path, wanted)
        confounds = read_confounds(recording.confounds, self._confounds, len(run))[1]
        try:
            return clean_run(run, confounds, recording.tr_s, self._high_pass_hz, seen)
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


def prepare(
    derivatives: Path,
    out: Path,
    data: Data,
    progress: Progress | None = None,
    captioner: Captioner | None = None,
    captioner_name: str = "captioner",
    pool: Pool | None = None,
    caption_cache: Path | None = None,
) -> Store:
    """Prepare one subject of fMRIPrep's outputs as a store.

    Parameters
    ----------
    derivatives : Path
        Holds ``sub-*``.
    out : Path
        The store's folder; a complete store there is refused, an interrupted one of the same settings goes on.
    data : Data
        Settings; ``fmriprep`` says what the recordings answer to, ``tr_s`` is the spacing of the store's scans.
    progress, captioner, captioner_name, pool, caption_cache
        As in `mindvideo.data.preparation.prepare_segments`.

    Raises
    ------
    DataError, SettingError
        For missing, contradictory or damaged input; nothing is written then.
    """
    source = find_source(derivatives, data)
    return prepare_segments(source, out, data, progress, captioner, captioner_name, pool, caption_cache)


def recording_tr(derivatives: Path, data: Data) -> float:
    """Repetition time of the subject's first recording in seconds."""
    _, paths = _find_files(derivatives, data)
    sidecar = _sidecar_path(paths[0])
    return read_positive(read_sidecar(sidecar), "RepetitionTime", sidecar)


def find_source(derivatives: Path, data: Data) -> Source:
    """Find and match recordings, events and films of one subject, and check them from headers and tables alone.

    Raises
    ------
    DataError
        For anything missing or contradictory.
    SettingError
        Where no film can be told to be the test.
    """
    settings = data.fmriprep
    stimuli = settings.stimuli
    if stimuli is None or not stimuli.is_dir():
        raise DataError(
            f"expected the folder of the films, found {stimuli or 'none'}; give it as data.fmriprep.stimuli (--stimuli)"
        )
    subject, paths = _find_files(derivatives, data)
    recordings = [_read_recording(path, data) for path in _without(paths, settings.exclude)]
    vertex = _common_vertices(recordings)
    showings = match_films(recordings, stimuli, settings.exclude)
    names = name_films(showings)
    splits = split_films(showings, names, data)
    lengths = {film: count_scans(stimuli / film, shown, recordings, data) for film, shown in showings.items()}
    check_repeats(showings, splits, lengths, data)
    made = _make_runs(recordings, showings, splits, lengths, data)
    order = sorted(showings, key=lambda film: (splits[film] == "test", natural_key(names[film])))
    segments = [Segment(names[film], splits[film], stimuli / film, lengths[film], made[film]) for film in order]
    used = sorted({index for shown in showings.values() for index, _ in shown})
    return Source(
        derivatives, subject, tuple(segments), vertex, _notes(recordings, showings, splits, made, data),
        files=tuple(dict.fromkeys(path for index in used for path in recordings[index].files)),
        roots={"stimuli": stimuli} | ({"bids": settings.bids} if settings.bids is not None else {}),
    )  # fmt: skip


def _make_runs(
    recordings: list[Recording], showings: Showings, splits: dict[Path, str], lengths: dict[Path, int], data: Data
) -> dict[Path, tuple[Run, ...]]:
    """A run for every showing of every film.

    Where test films share a run with others, the others are cleaned and scaled without the volumes that only test
    scans use, so that no training value depends on them; the test films see the whole run.
    """
    cleaned = CleanedRuns(data.fmriprep.confounds, data.fmriprep.high_pass_hz)
    weights: dict[Path, list[np.ndarray]] = {}
    for_test = [np.zeros(len(recording.volume_s), dtype=bool) for recording in recordings]
    for_training = [mask.copy() for mask in for_test]
    for film, shown in showings.items():
        weights[film] = []
        for index, event in shown:
            times = scan_times(event.onset_s, data.lag_s, lengths[film], data.tr_s)
            volume_s = recordings[index].volume_s
            weights[film].append(resampling_weights(times, volume_s, data.tr_s, data.fmriprep.resample))
            masks = for_test if splits[film] == "test" else for_training
            masks[index] |= weights[film][-1].any(axis=0)
    made = {}
    for film, shown in showings.items():
        runs = []
        for (index, event), own in zip(shown, weights[film], strict=True):
            seen = np.ones(own.shape[1], dtype=bool)
            if splits[film] != "test":
                seen = ~for_test[index] | for_training[index]
            first = int(np.flatnonzero(own[0])[0])
            showing = Showing(recordings[index], seen, own, cleaned)
            runs.append(Run(f"{recordings[index].name}@{event.onset_s:g}s", recordings[index].path, first, showing))
        made[film] = tuple(runs)
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
    recordings: list[Recording],
    showings: Showings,
    splits: dict[Path, str],
    made: dict[Path, tuple[Run, ...]],
    data: Data,
) -> dict[str, dict[str, Any]]:
    """What was found, and how volumes became scans."""
    settings = data.fmriprep
    offset_s, mixed = 0.0, set()
    for film, shown in showings.items():
        for (index, event), run in zip(shown, made[film], strict=True):
            assert isinstance(run.read, Showing)
            times = scan_times(event.onset_s, data.lag_s, len(run.read.weights), data.tr_s)
            nearest = np.abs(times[:, None] - recordings[index].volume_s[None, :]).min(axis=1)
            offset_s = max(offset_s, float(nearest.max()))
            if not run.read.seen.all():
                mixed.add(recordings[index].name)
    columns = {}
    for recording in recordings if settings.confounds else ():
        columns[recording.name] = read_confounds(recording.confounds, settings.confounds, len(recording.volume_s))[0]
    return {
        "discover": {
            "source": "fmriprep",
            "task": settings.task,
            "runs": {recording.name: {"tr_s": recording.tr_s, "first_volume_s": float(recording.volume_s[0]),
                                      "volumes": len(recording.volume_s)} for recording in recordings},
            "test": sorted(film.as_posix() for film in showings if splits[film] == "test"),
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
            "showings": {film.as_posix(): [run.label for run in made[film]] for film in showings},
            "n_scans": {film.as_posix(): len(made[film][0].read.weights) for film in showings},  # type: ignore[union-attr]
        },
        "resample": {"how": settings.resample, "tr_s": data.tr_s, "largest_offset_s": offset_s},
    }  # fmt: skip


def _find_files(derivatives: Path, data: Data) -> tuple[str, list[Path]]:
    """The subject's name and the recordings of the task, in natural order."""
    settings = data.fmriprep
    if not derivatives.is_dir():
        raise DataError(f"expected fMRIPrep's outputs in {derivatives}, found no folder; give the one with sub-*")
    if settings.task is None:
        raise SettingError("expected the task of the films, found none; give it as data.fmriprep.task (--task)")
    files = [path for pattern in ("sub-*/func/*", "sub-*/ses-*/func/*") for path in derivatives.glob(pattern)]
    named = [(path, parse_name(path.name)) for path in files if path.name.endswith(_IMAGES)]
    of_task = [(path, keys) for path, keys in named if fnmatch.fnmatchcase(keys.get("task", ""), settings.task)]
    if not of_task:
        tasks = sorted({keys["task"] for _, keys in named if "task" in keys})
        raise DataError(
            f"expected recordings of task {settings.task} below {derivatives}/sub-*/[ses-*/]func, found the tasks "
            f"{', '.join(tasks) or 'none'}; give one of these"
        )
    subjects = sorted({keys["sub"] for _, keys in of_task if "sub" in keys}, key=natural_key)
    default = subjects[0] if len(subjects) == 1 else ""
    subject = str(default if settings.participant is None else settings.participant).removeprefix("sub-")
    if subject not in subjects and subject.isdigit():  # YAML reads 01 as a number
        alike = [label for label in subjects if label.isdigit() and int(label) == int(subject)]
        subject = alike[0] if len(alike) == 1 else subject
    if subject not in subjects:
        found = f"sub-{subject}" if subject else f"{len(subjects)} subjects"
        raise DataError(
            f"expected one of the subjects {', '.join(subjects)} with task {settings.task} in {derivatives}, "
            f"found {found}; give one (--subject)"
        )
    own = [path for path, keys in of_task if keys.get("sub") == subject]
    wanted = {"space": "fsLR", "den": "91k"}
    chosen = [path for path in own if path.name.endswith(_SUFFIX) and wanted.items() <= parse_name(path.name).items()]
    if not chosen:
        spaces = sorted({_space(path) for path in own})
        raise DataError(
            f"expected recordings *_space-fsLR_den-91k{_SUFFIX} of sub-{subject} in {derivatives}, found only "
            f"{', '.join(spaces)}; run fMRIPrep with --cifti-output 91k"
        )
    return f"sub-{subject}", sorted(chosen, key=lambda path: natural_key(path.as_posix()))


def _space(path: Path) -> str:
    """What a recording is given in, in words."""
    keys = parse_name(path.name)
    kind = path.name.split("_bold.", 1)[1]
    place = "_".join(f"{key}-{keys[key]}" for key in ("space", "den", "hemi") if key in keys) or "native space"
    return f"{place} ({kind})"


def _without(paths: list[Path], exclude: tuple[str, ...]) -> list[Path]:
    """The recordings that are not excluded as a whole."""
    whole = [pattern for pattern in exclude if ":" not in pattern]
    names = [recording_name(path.name) for path in paths]
    for pattern in whole:
        if not fnmatch.filter(names, pattern):
            raise SettingError(f"expected a run to exclude, one of {listed(names)}, found '{pattern}'")
    kept = [
        path
        for path, name in zip(paths, names, strict=True)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in whole)
    ]
    if not kept:
        raise DataError(f"expected a run that is not excluded, found all {len(paths)} under exclude; shorten the list")
    return kept


def _sidecar_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".dtseries.nii") + ".json")


def _read_recording(path: Path, data: Data) -> Recording:
    """Header, sidecar, events and the place of the confounds of one run."""
    settings = data.fmriprep
    header = read_header(path)
    sidecar_path = _sidecar_path(path)
    sidecar = read_sidecar(sidecar_path)
    tr_s = read_positive(sidecar, "RepetitionTime", sidecar_path)
    if abs(tr_s - header.tr_s) > 1e-3:
        raise DataError(
            f"expected the TR of {tr_s:g} s that {sidecar_path.name} states in {path}, found {header.tr_s:g} s; "
            "are the two of one run of fMRIPrep?"
        )
    start_s = 0.0
    if sidecar.get("SliceTimingCorrected") is True and "StartTime" in sidecar and sidecar["StartTime"] != 0:
        start_s = read_positive(sidecar, "StartTime", sidecar_path)
    name = recording_name(path.name)
    files = [sidecar_path]
    confounds = path.with_name(f"{name}_desc-confounds_timeseries.tsv")
    if settings.confounds:
        older = path.with_name(f"{name}_desc-confounds_regressors.tsv")
        confounds = older if older.is_file() and not confounds.is_file() else confounds
        read_confounds(confounds, settings.confounds, header.n_volumes)
        files.append(confounds)
    events_path = find_events(name, path.parent, settings.bids)
    events = read_events(events_path, settings.stim_column)
    files.append(events_path)
    if header.n_volumes < 2:
        raise DataError(f"expected a run of several volumes at {path}, found {header.n_volumes}; exclude it")
    volume_s = start_s + np.arange(header.n_volumes) * tr_s
    return Recording(name, path, tr_s, volume_s, confounds, tuple(files), tuple(events))
