"""Parcels: arrays people x time x parcels, with the atlas's names and BIDS events.

``RUN.npy`` or ``RUN.h5`` and ``RUN_events.tsv``, a pair for each run, lie in one
folder. Everybody in an array saw the same at the same time; person N is the array's
Nth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import Field

from mindvideo.config import Data
from mindvideo.data.arrays import read_npy
from mindvideo.data.bids import read_events, read_table, read_text
from mindvideo.data.denoising import Confounds
from mindvideo.data.segments import Source
from mindvideo.data.showings import Recording
from mindvideo.data.shown_films import EventSettings, leave_out, source_of_events
from mindvideo.data.store import listed, natural_key, parcel_vertices
from mindvideo.errors import DataError, SettingError, one_line
from mindvideo.files import require_content

_H5 = (".h5", ".hdf5")
_AXES = "people x time x parcels"


class Settings(EventSettings):
    """What arrays of parcels do not say of themselves; ``data.raw`` is their folder."""

    labels: Path | None = Field(
        None, description="names of the parcels, in the arrays' order: one a line, or a tsv with a column name or label"
    )
    array_tr_s: float | None = Field(None, gt=0, description="seconds between the arrays' time points")
    dataset: str | None = Field(None, description="which data set of h5 files; empty where each holds one")


def settle(raw: Path, data: Data) -> Data:
    """The settings with the arrays' own spacing of scans where none is stated."""
    if data.own.array_tr_s is None:
        raise SettingError(
            "expected the seconds between the arrays' time points, which they do not say, found none; give "
            "data.parcels.array_tr_s (--array-tr-s)"
        )
    return data if data.tr_s else data.model_copy(update={"tr_s": data.own.array_tr_s})


def discover(raw: Path, data: Data) -> Source:
    """Find arrays, names and events, and check them from headers and tables alone."""
    settings: Settings = data.own
    if not raw.is_dir():
        raise DataError(f"expected a folder of arrays {_AXES} at {raw}, found none; give the one with *.npy or *.h5")
    names = read_labels(settings.labels)
    arrays = [path for path in raw.iterdir() if path.suffix in (".npy", *_H5) and not path.name.startswith(".")]
    if not arrays:
        raise DataError(f"expected arrays {_AXES} (*.npy, *.h5) in {raw}, found none; give the folder that holds them")
    arrays.sort(key=lambda path: natural_key(path.name))
    if len({path.stem for path in arrays}) < len(arrays):
        raise DataError(
            f"expected one array a run in {raw}, found {listed([path.name for path in arrays])}; keep one each"
        )
    paths = leave_out({path: (path.stem, path.name) for path in arrays}, settings.exclude)
    recordings = [_read_recording(path, names, data) for path in paths]
    assert settings.labels is not None
    bare = Source(
        raw, f"subject{data.subject}", (), parcel_vertices(names), {"discover": {"labels": settings.labels.name}},
        files=(settings.labels,), parcels=names,
    )  # fmt: skip
    return source_of_events(bare, recordings, data, _ReadPerson(data.subject, names, settings.dataset))


def read_labels(path: Path | None) -> tuple[str, ...]:
    """Names of parcels: the column ``name`` or ``label`` of a table, or one a line."""
    if path is None:
        raise DataError("expected the names of the parcels, found none; give data.parcels.labels (--labels FILE)")
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if lines and "\t" in lines[0]:
        table = read_table(path)
        column = next((table[name] for name in ("name", "label") if name in table), None)
        if column is None:
            raise DataError(f"expected a column name or label in {path}, found {listed(list(table))}; name it so")
        lines = column
    twice = sorted({name for name in lines if lines.count(name) > 1})
    if twice or not all(lines) or not lines:
        found = f"{listed(twice)} twice" if twice else "an empty one" if lines else "none"
        raise DataError(f"expected a name of its own for every parcel in {path}, found {found}; write it anew")
    return tuple(lines)


def _read_recording(path: Path, names: tuple[str, ...], data: Data) -> Recording:
    """Axes and events of one run; its values stay on disk."""
    settings: Settings = data.own
    events_path = path.with_name(f"{path.stem}_events.tsv")
    if not events_path.is_file():
        raise DataError(
            f"expected {events_path.name}, which says what was shown when, beside {path}, found none; add it, or exclude "
            f"{path.stem}"
        )
    with open_array(path, settings.dataset) as array:
        shape, kind = array.shape, array.dtype
    if len(shape) != 3 or kind.kind not in "fiu":
        raise DataError(f"expected numbers {_AXES} in {path}, found {kind} of shape {shape}; save them so")
    people, n_volumes, n_parcels = shape
    if n_parcels != len(names):
        way_out = "give the labels of their atlas (--labels)"
        if len(names) in shape:
            way_out = f"axis {shape.index(len(names))} has as many: save the array with its axes in this order"
        raise DataError(
            f"expected {_AXES} with {len(names)} parcels, as {settings.labels} names, in {path}, found shape {shape}; {way_out}"
        )
    if data.subject > people:
        raise DataError(
            f"expected subject {data.subject} in {path}, found {people} people; give one of 1 to {people} (data.subject, "
            f"data.subjects, --subject), or exclude {path.stem}"
        )
    if n_volumes < 2:
        raise DataError(f"expected a run of several time points in {path}, found {n_volumes}; exclude {path.stem}")
    assert settings.array_tr_s is not None
    nothing = Confounds((), np.empty((n_volumes, 0)), (), np.ones(n_volumes, dtype=bool))
    events = tuple(read_events(events_path, settings.stim_column))
    times = np.arange(n_volumes) * settings.array_tr_s
    return Recording(path.stem, path, settings.array_tr_s, times, nothing, events_path, events, (events_path,))


@contextmanager
def open_array(path: Path, dataset: str | None = None) -> Iterator[Any]:
    """The array in a file, or one in an h5 file; values stay on disk until taken."""
    if path.suffix not in _H5:
        yield read_npy(path)
        return
    require_content(path, "an array")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"expected an intact HDF5 file at {path}, found damage ({one_line(error)}); copy it again"
        ) from error
    with file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        wanted = found[0] if dataset is None and len(found) == 1 else (dataset or "").strip("/")
        if wanted not in found:
            raise DataError(
                f"expected one data set{f' {dataset}' if dataset else ''} in {path}, found {listed(found) or 'none'}; name "
                "the one to read (data.parcels.dataset, --dataset)"
            )
        try:
            yield file[wanted]
        except OSError as error:
            raise DataError(f"expected readable values in {path}, found damage ({error}); copy it again") from error


@dataclass(frozen=True)
class _ReadPerson:
    """Reads one person's time points out of a run, float32 (T, parcels)."""

    subject: int
    names: tuple[str, ...]
    dataset: str | None

    def __call__(self, recording: Recording, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The wanted parcels; NaN throughout is silence, NaN among others damage."""
        with open_array(recording.path, self.dataset) as array:
            if array.shape[1:] != (len(recording.volume_s), len(vertex)) or len(array) < self.subject:
                raise DataError(f"expected {recording.path} as it was a moment ago, found other axes; was it replaced?")
            whole = np.asarray(array[self.subject - 1])
        is_number = np.isfinite(whole)
        if not is_number.any():
            raise DataError(
                f"expected values of subject {self.subject} in {recording.path}, found none but NaN; leave this person out "
                f"(data.subjects), or exclude {recording.name}"
            )
        is_damaged = ~is_number.all(axis=0) & ~np.isnan(whole).all(axis=0)
        if is_damaged.any():
            raise DataError(
                f"expected finite values of subject {self.subject} in {recording.path}, found NaN or infinite ones among "
                f"others in {int(is_damaged.sum())} of {len(is_damaged)} parcels (e.g. {self.names[np.argmax(is_damaged)]}); "
                f"repair the array, or exclude {recording.name}"
            )
        return whole[:, np.searchsorted(vertex, wanted)].astype(np.float32)
