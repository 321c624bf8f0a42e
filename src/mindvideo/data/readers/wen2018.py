"""Wen et al. 2018 (CC2017) as Purdue publishes it (docs/method.md, Recordings).

``stimuli/{seg1…,test1…}.mp4`` and ``subject{n}/fmri/{SEG}/cifti/{SEG}_{run}_Atlas.dtseries.nii``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mindvideo.config import Data, Section
from mindvideo.data.segments import Remark, Run, Segment, Source, frame_times, name_splits
from mindvideo.data.series import common_vertices, read_layout
from mindvideo.data.store import listed, natural_key
from mindvideo.data.video import is_film, probe
from mindvideo.errors import DataError, SettingError

AFTER_FILM_S = 10.0
"""The scanner ran on for this long after each film; the last volume lies at its end."""
EXTRA_VOLUMES = (5, 6)
"""Volumes beyond the film's scans: 6, or 5 where the scanner dropped the first."""
WEN2018 = {"train": (18, 2), "test": (5, 10)}
"""Segments and runs of the published recordings."""
KNOWN_REASONS = {"subject3:test2_9": "the run starts about 10 s late"}

_SEGMENT = re.compile(r"(seg|test)\d+")
_EXCLUDED = re.compile(r"subject(\d+):((?:seg|test)\d+)(?:_(\d+))?")
_KIND = {"seg": "train", "test": "test"}


class Settings(Section):
    """What only Wen 2018 has (``data.wen2018``)."""

    exclude: tuple[str, ...] = Field(
        tuple(KNOWN_REASONS),
        description="runs (subject3:test2_9, which starts 10 s late) or films (subject3:test2) left out",
    )
    expect: Literal["wen2018"] | None = Field(None, description="insist on 18 + 5 films with 2 and 10 runs")


@dataclass(frozen=True)
class _Layout:
    """Films and recordings by segment, and the segments and runs that settings leave out.

    ``left_out`` are the runs among these that are there.
    """

    films: dict[str, Path]
    runs: dict[str, dict[int, Path]]
    excluded_segments: frozenset[str]
    excluded_runs: dict[str, set[int]]
    left_out: dict[str, set[int]]


def discover(raw: Path, data: Data) -> Source:
    """Find, match and check films and recordings of one subject, from headers alone."""
    layout = _find_layout(raw, data)
    _check_pairs(raw, data, layout)
    _check_runs(raw, data, layout)
    names = sorted((name for name in layout.films if layout.runs.get(name)), key=natural_key)
    names = [name for name in names if name not in layout.excluded_segments]
    if data.own.expect == "wen2018":
        _insist(raw, data, layout, names)
    training, test = ([name for name in names if name.startswith(kind)] for kind in _KIND)
    splits: dict[str, str] = name_splits(training, test, data, f"(seg*, test*) in {raw}")
    vertex = common_vertices(path for name in names for path in layout.runs[name].values())
    segments = []
    for name in names:
        n_scans, duration_s = _count_scans(layout.films[name], data)
        runs = []
        for number, path in sorted(layout.runs[name].items()):
            runs.append(Run(f"{name}_{number}", path, _first_volume(path, n_scans, duration_s, data)))
        segments.append(Segment(name, splits[name], layout.films[name], n_scans, tuple(runs)))
    notes = {"discover": _discovered(data, layout)}
    left_out = tuple(f"{item['run']} ({item['reason']})" for item in notes["discover"]["excluded"])
    remarks = Remark.of({"runs and films left out": left_out})
    return Source(raw, f"subject{data.subject}", tuple(segments), vertex, notes, remarks=remarks)


def first_volume_time(n_volumes: int, n_scans: int, tr_s: float) -> float:
    """Movie time of a recording's first volume in seconds: it ends `AFTER_FILM_S` after the film.

    At a TR of 2 s and films of 480 s: 245 volumes start at 2 s, 246 at 0 s.
    """
    return n_scans * tr_s + AFTER_FILM_S - (n_volumes - 1) * tr_s


def _first_volume(path: Path, n_scans: int, duration_s: float, data: Data) -> int:
    """Index of the volume that pairs with movie time 0."""
    header = read_layout(path).header
    if abs(header.tr_s - data.tr_s) > 1e-3:
        raise DataError(
            f"expected a TR of {data.tr_s:g} s in {path}, found {header.tr_s:g} s; set data.tr_s or replace the file"
        )
    extra = header.n_volumes - n_scans
    if extra not in EXTRA_VOLUMES:
        wanted = " or ".join(str(n_scans + number) for number in EXTRA_VOLUMES)
        raise DataError(
            f"expected {wanted} volumes in {path} for a film of {duration_s:.2f} s, found {header.n_volumes}; "
            "replace the recording or list it under exclude"
        )
    start_s = first_volume_time(header.n_volumes, n_scans, data.tr_s)
    index = (data.lag_s - start_s) / data.tr_s
    first = round(index)
    if abs(index - first) > 1e-6 or first < 0 or first + n_scans > header.n_volumes:
        last_s = start_s + (header.n_volumes - n_scans) * data.tr_s
        raise DataError(
            f"expected a lag_s of {start_s:g} to {last_s:g} s in steps of {data.tr_s:g} s for {path}, whose first "
            f"volume was acquired at movie time {start_s:g} s, found {data.lag_s:g} s; choose another data.lag_s"
        )
    return first


def _count_scans(film: Path, data: Data) -> tuple[int, float]:
    """Number of TRs a film fills, and its length in seconds."""
    duration_s = probe(film).duration_s
    n_scans = round(duration_s / data.tr_s)
    if n_scans < 1:
        raise DataError(f"expected a film of at least {data.tr_s:g} s at {film}, found {duration_s:.2f} s")
    last_s = float(frame_times(n_scans, data.tr_s, data.fps)[-1, -1])
    if last_s > duration_s + 0.1:
        raise DataError(
            f"{film} is too short: {n_scans} scans of {data.tr_s:g} s need a frame at second {last_s:.2f}, "
            f"the film stops at second {duration_s:.2f}; supply the whole film"
        )
    return n_scans, duration_s


def _find_layout(raw: Path, data: Data) -> _Layout:
    subject = raw / f"subject{data.subject}" / "fmri"
    for folder, what in ((raw, "the download"), (raw / "stimuli", "the films"), (subject, "the subject's recordings")):
        if not folder.is_dir():
            raise DataError(
                f"expected {what} in {folder}, found no folder; give the folder with stimuli/ and subject1/"
            )
    segments, runs = _parse_exclude(data)
    films: dict[str, Path] = {}
    for path in sorted((raw / "stimuli").iterdir()):
        if _SEGMENT.fullmatch(path.stem) and path.stem not in segments and is_film(path):
            if path.stem in films:
                raise DataError(f"expected one film of {path.stem} in {path.parent}, found several; keep one of them")
            films[path.stem] = path
    folders = [folder for folder in sorted(subject.iterdir()) if folder.is_dir() and _SEGMENT.fullmatch(folder.name)]
    unknown = segments - {folder.name for folder in folders} - {path.stem for path in (raw / "stimuli").iterdir()}
    recordings, left_out = {}, {}
    for folder in folders:
        if folder.name not in segments:
            recordings[folder.name], left_out[folder.name] = _find_runs(folder, runs.get(folder.name, set()))
    for name, numbers in runs.items():
        kind = name.rstrip("0123456789") if name in recordings else None
        alike = [other for other in recordings if kind and other.startswith(kind)]
        n_runs = max((max([*recordings[other], *left_out[other]], default=0) for other in alike), default=0)
        unknown |= {f"{name}_{number}" for number in numbers if number > n_runs and name not in segments}
    unknown = {name for name in unknown if f"subject{data.subject}:{name}" not in KNOWN_REASONS}
    if unknown:
        raise SettingError(
            f"expected data.wen2018.exclude to name runs or segments of subject{data.subject} in {raw}, found "
            f"{listed(sorted(unknown, key=natural_key))}, which are not there; correct or remove them"
        )
    return _Layout(films, recordings, frozenset(segments), runs, left_out)


def _find_runs(folder: Path, excluded: set[int]) -> tuple[dict[int, Path], set[int]]:
    """Recordings of a segment by run number, and the numbers of excluded ones."""
    pattern = re.compile(re.escape(folder.name) + r"_(\d+)_Atlas\.dtseries\.nii(\.gz)?")
    cifti, runs, left_out = folder / "cifti", {}, set()
    for path in sorted(cifti.iterdir()) if cifti.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match and int(match[1]) in excluded:
            left_out.add(int(match[1]))
        elif match:
            if int(match[1]) in runs:
                raise DataError(f"expected one file of run {match[1]} in {cifti}, found several; keep one of them")
            runs[int(match[1])] = path
    if not runs and not excluded and any((folder / other).is_dir() for other in ("mni", "raw")):
        raise DataError(
            f"expected CIFTI recordings {cifti}/{folder.name}_1_Atlas.dtseries.nii, found NIfTI only; "
            "volumes (mni/) are not read, add the cifti folder of the download"
        )
    return runs, left_out


def _parse_exclude(data: Data) -> tuple[set[str], dict[str, set[int]]]:
    segments: set[str] = set()
    runs: dict[str, set[int]] = {}
    for text in data.own.exclude:
        match = _EXCLUDED.fullmatch(text)
        if match is None:
            raise SettingError(
                f"expected data.wen2018.exclude entries such as subject3:test2_9 or subject3:test2, found '{text}'"
            )
        if int(match[1]) == data.subject and match[3] is None:
            segments.add(match[2])
        elif int(match[1]) == data.subject:
            runs.setdefault(match[2], set()).add(int(match[3]))
    return segments, runs


def _check_pairs(raw: Path, data: Data, layout: _Layout) -> None:
    """Every film has recordings and every recording a film."""
    recorded = {name for name, runs in layout.runs.items() if runs or layout.excluded_runs.get(name)}
    without_runs = sorted(set(layout.films) - recorded, key=natural_key)
    without_film = sorted(recorded - set(layout.films), key=natural_key)
    if without_runs:
        raise DataError(
            f"expected recordings of every film under {raw / f'subject{data.subject}' / 'fmri'}, found none of "
            f"{listed(without_runs)}; add them or list subject{data.subject}:{without_runs[0]} under exclude"
        )
    if without_film:
        raise DataError(
            f"expected a film of every recorded segment in {raw / 'stimuli'}, found none of {listed(without_film)}; "
            f"add it or list subject{data.subject}:{without_film[0]} under exclude"
        )


def _check_runs(raw: Path, data: Data, layout: _Layout) -> None:
    """Runs are numbered 1… without gaps, up to the same number for all films of a kind."""
    missing = []
    for kind in _KIND:
        members = [name for name in layout.runs if name.startswith(kind)]
        present = {name: set(layout.runs[name]) | layout.excluded_runs.get(name, set()) for name in members}
        n_runs = max((max(layout.runs[name], default=0) for name in members), default=0)
        for name in sorted(members, key=natural_key):
            missing += [f"{name}_{number}" for number in range(1, n_runs + 1) if number not in present[name]]
    if missing:
        raise DataError(
            f"expected as many runs of every segment under {raw / f'subject{data.subject}' / 'fmri'}, missing: "
            f"{listed(missing)}; add the files or list subject{data.subject}:{missing[0]} under exclude"
        )


def _insist(raw: Path, data: Data, layout: _Layout, names: list[str]) -> None:
    """The published numbers of segments and runs, less what is excluded."""
    for prefix, kind in _KIND.items():
        n_segments, n_runs = WEN2018[kind]
        wanted = {f"{prefix}{number}" for number in range(1, n_segments + 1)} - layout.excluded_segments
        found = {name for name in names if name.startswith(prefix)}
        found |= {name for name in wanted if layout.excluded_runs.get(name, set()) >= set(range(1, n_runs + 1))}
        if found != wanted:
            missing = listed(sorted(wanted - found, key=natural_key)) or "none"
            surplus = listed(sorted(found - wanted, key=natural_key)) or "none"
            raise DataError(
                f"expected {len(wanted)} {kind} segments of subject{data.subject} in {raw} (expect=wen2018), found "
                f"{len(found)} (missing: {missing}; not expected: {surplus}); add the files or list them under exclude"
            )
        for name in sorted(found, key=natural_key):
            runs = set(layout.runs.get(name, {})) | layout.excluded_runs.get(name, set())
            if runs != set(range(1, n_runs + 1)):
                raise DataError(
                    f"expected runs 1 to {n_runs} of {name} of subject{data.subject} in {raw} (expect=wen2018), "
                    f"found {sorted(runs)}; add the files or list them under exclude"
                )


def _discovered(data: Data, layout: _Layout) -> dict[str, Any]:
    left_out = [f"{name}_{number}" for name, numbers in layout.left_out.items() for number in numbers]
    excluded = [f"subject{data.subject}:{name}" for name in [*layout.excluded_segments, *left_out]]
    return {
        "source": data.source,
        "subject": data.subject,
        "excluded": [
            {"run": name, "reason": KNOWN_REASONS.get(name, "listed under data.wen2018.exclude")}
            for name in sorted(excluded, key=natural_key)
        ],
    }
