"""fMRIPrep's CIFTI outputs with BIDS events.

``sub-*/[ses-*/]func/*_task-TASK*_space-fsLR_den-91k_bold.dtseries.nii`` with
``_bold.json`` (RepetitionTime) and ``_desc-confounds_timeseries.tsv``; ``…_events.tsv``
beside them or in the raw data set.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from mindvideo.config import Data
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
from mindvideo.data.denoising import read_confounds
from mindvideo.data.segments import Remark, Source
from mindvideo.data.series import SeriesFile, common_vertices, read_layout
from mindvideo.data.showings import Recording
from mindvideo.data.shown_films import EventSettings, leave_out, require_stimuli, source_of_events
from mindvideo.data.store import listed, natural_key
from mindvideo.errors import DataError, SettingError

_SUFFIX = "_bold.dtseries.nii"
_SUFFIXES = (_SUFFIX, f"{_SUFFIX}.gz")
_IMAGES = ("_bold.nii", "_bold.nii.gz", "_bold.func.gii", *_SUFFIXES)
_VARIANTS = ("desc", "echo", "part", "res", "rec", "proc")
"""Keys that tell files of one recording apart."""
_LONGEST_TR_S = 30.0


class Settings(EventSettings):
    """How fMRIPrep's outputs become scans of films; ``data.raw`` is the derivatives."""

    bids: Path | None = Field(None, description="raw BIDS data set that holds the events; empty: the derivatives do")
    task: str | None = Field(None, description="BIDS task label; * and ? stand for anything")
    participant: str | int | None = Field(
        None,
        description="BIDS subject label; empty where there is one subject",
        json_schema_extra={"option": "--subject"},
    )
    confounds: tuple[str, ...] = Field(
        ("trans_?", "rot_?", "csf", "white_matter"), description="columns that are regressed out; * and ? allowed"
    )


def settle(derivatives: Path, data: Data) -> Data:
    """The settings with the TR of the subject's first recording where none is stated."""
    if data.tr_s:
        return data
    _, paths, _ = _find_files(derivatives, data)
    return data.model_copy(update={"tr_s": _read_timing(paths[0], derivatives, data).tr_s})


def discover(derivatives: Path, data: Data) -> Source:
    """Find, match and check recordings, events and films of one subject."""
    settings: Settings = data.own
    require_stimuli(data)
    subject, paths, remarks = _find_files(derivatives, data)
    recordings = [_read_recording(path, derivatives, data) for path in paths]
    bare = Source(
        derivatives, subject, (), common_vertices(paths), {"discover": {"task": settings.task}},
        roots={"bids": settings.bids} if settings.bids is not None else {}, remarks=remarks,
    )  # fmt: skip
    return source_of_events(bare, recordings, data, _read_run)


def _read_run(recording: Recording, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The volumes of a run at the wanted positions, float32 (T, V)."""
    file = SeriesFile(recording.path)
    if not np.array_equal(file.header.vertex, vertex) or file.header.n_volumes != len(recording.volume_s):
        raise DataError(f"expected {recording.path} as it was a moment ago, found other axes; was it replaced?")
    return file.take(wanted).T


def _find_files(derivatives: Path, data: Data) -> tuple[str, list[Path], tuple[Remark, ...]]:
    """The subject's name, one file for each recording of the task, and remarks."""
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
            f"expected recordings of task {settings.task} below {derivatives}/sub-*/[ses-*/]func, found "
            + (f"the tasks {', '.join(tasks)}; give one" if tasks else "none; give the folder that holds sub-*")
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
    kept = leave_out({path: (recording_name(path.name), path.name) for path in chosen}, settings.exclude)
    single = _one_of_each(kept)
    remarks = {
        "runs left out, as told under exclude": [recording_name(path.name) for path in chosen if path not in kept],
        "files left out, which are other versions of a recording": [p.name for p in kept if p not in single],
    }
    return f"sub-{subject}", single, Remark.of(remarks)


def _find_subject(labels: set[str], derivatives: Path, data: Data) -> str:
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


@dataclass(frozen=True)
class _Timing:
    """When a run's volumes were taken, and the files that say so."""

    tr_s: float
    start_s: float
    n_volumes: int
    files: tuple[Path, ...]
    tr_from: str


def _read_timing(path: Path, derivatives: Path, data: Data) -> _Timing:
    """TR and slice timing from the sidecars, else the TR of the header."""
    header = read_layout(path).header
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
