"""What a reader gives: films and their recordings, segment by segment.

Shapes: n scans of a segment, F frames a scan, N vertices of a file.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mindvideo.atlas import parse_areas
from mindvideo.config import Data
from mindvideo.errors import DataError, SettingError

MOST_FPS = 30
Name = TypeVar("Name")


@dataclass(frozen=True)
class Run:
    """One recording of a film; the volume ``first`` pairs with movie time 0.

    If the film is not simply a stretch of volumes, ``read(vertex, wanted)`` gives
    standardised scans, float32 (n, len(wanted)), of some of the source's vertices.
    """

    label: str
    path: Path
    first: int
    read: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Segment:
    """A film and its recordings; ``split`` is train, validation or test.

    A segment that ``is_part`` of a film begins at its scan ``first``; files of captions
    may use ``other_names``.
    """

    name: str
    split: str
    film: Path
    n_scans: int
    runs: tuple[Run, ...]
    first: int = 0
    is_part: bool = False
    other_names: tuple[str, ...] = ()

    def times_s(self, data: Data) -> np.ndarray:
        """Movie time of every kept frame, float64 (n, F)."""
        return frame_times(self.n_scans, data.tr_s, data.fps, self.first)


@dataclass(frozen=True)
class Remark:
    """What was left out of a data set or assumed, in words, and the names it concerns."""

    text: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, found: Mapping[str, Iterable[str]]) -> tuple[Remark, ...]:
        """Remarks by text; those that concern nothing are left out."""
        return tuple(cls(text, names) for text, each in found.items() if (names := tuple(each)))


@dataclass(frozen=True)
class Source:
    """A checked source: its folder, subject, segments, vertices of every file, and notes.

    A note replaces the step of its name in the provenance. ``files`` are further
    inputs; ``roots`` are folders beside ``root``, by name; ``parcels`` are the names of
    all parcels, if values are of these, and ``vertex`` is then `parcel_vertices`.
    """

    root: Path
    subject: str
    segments: tuple[Segment, ...]
    vertex: np.ndarray
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    roots: dict[str, Path] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    parcels: tuple[str, ...] = ()

    def candidates(self, areas: str) -> np.ndarray:
        """The vertices of MMP1 areas, ascending, or of parcels with ``*`` and ``?``."""
        if not self.parcels:
            found = np.intersect1d(self.vertex, parse_areas(areas))
            if not len(found):
                raise DataError(
                    f"expected vertices of the areas '{areas}' in the recordings of {self.root}, found none"
                )
            return found
        chosen: set[str] = set()
        for name in filter(None, map(str.strip, areas.split(","))):
            matching = self.parcels if name == "cortex" else fnmatch.filter(self.parcels, name)
            if not matching:
                raise SettingError(
                    f"expected 'cortex' for all parcels, or names of some with * and ?, found '{name}', which none of "
                    f"{self.parcels[0]}, … {self.parcels[-1]} is called"
                )
            chosen |= set(matching)
        return self.vertex[[name in chosen for name in self.parcels]]

    def name_vertices(self, vertex: np.ndarray) -> tuple[str, ...]:
        """What remarks call some vertices: their numbers, or the names of parcels."""
        if not self.parcels:
            return tuple(map(str, vertex.tolist()))
        return tuple(self.parcels[at] for at in np.searchsorted(self.vertex, vertex))

    def name_file(self, path: Path) -> str:
        """A file's name in the store: its path below the root, or a named folder of ``roots``."""
        for name, folder in {"": self.root, **self.roots}.items():
            if path.is_relative_to(folder):
                return f"{name}/{path.relative_to(folder).as_posix()}".lstrip("/")
        return path.name


def name_splits(training: Sequence[Name], test: Collection[Name], data: Data, where: str) -> dict[Name, str]:
    """The split of each film; the last training films validate."""
    held = data.validation_segments
    if len(training) <= held or not test:
        raise DataError(
            f"expected more than {held} training films (the last {held} validate) and a test film {where}, found "
            f"{len(training)} and {len(test)}; add films, name fewer for the test, or lower data.validation_segments"
        )
    splits = dict.fromkeys(training, "train") | dict.fromkeys(training[len(training) - held :], "validation")
    return splits | dict.fromkeys(test, "test")


def frame_times(n_scans: int, tr_s: float, fps: int, first: int = 0) -> np.ndarray:
    """Movie time of every kept frame, float64 (n, F): scan k shows (first + k) · tr_s + j / fps, j = 0…F−1.

    SettingError if a TR does not hold a whole number of frames.
    """
    if not _is_whole(fps * tr_s):
        rates = [str(rate) for rate in range(1, MOST_FPS + 1) if _is_whole(rate * tr_s)]
        way_out = f"choose fps {', '.join(rates[:4])} (data.fps, --fps), or " if rates else "no fps up to 30 has one: "
        raise SettingError(
            f"expected a whole number of frames in each TR, found {fps} frames/s x {tr_s:g} s = {fps * tr_s:g}; {way_out}"
            "with fmriprep or parcels choose another spacing of the scans, as --tr-s 2 --fps 3 (data.tr_s, data.fps)"
        )
    return (first + np.arange(n_scans)[:, None]) * tr_s + np.arange(round(fps * tr_s))[None, :] / fps


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) <= 1e-6 and round(number) >= 1
