"""The reader of CIFTI-2 dense time series, in one pass with the hash, or only some vertices.

A file holds one grayordinate's series after another: blocks of them are read, hashed
and used while in the processor's cache, or a few vertices without the rest. nibabel
parses the headers.

Shapes: N vertices of a file, K rows of its matrix (all grayordinates), T volumes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
from nibabel import cifti2

from mindvideo.atlas import N_SURFACE, surface_vertex_index
from mindvideo.data.cifti import LEFT, RIGHT
from mindvideo.errors import DataError, one_line
from mindvideo.files import hash_file, require_content

BLOCK_ROWS = 1024
"""Rows read at once: about 1 MB at 245 volumes."""

_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_LARGEST_HEADER = 64 * 2**20
_GAP_BYTES = 16384
"""Wanted rows nearer than this are read in one go."""
_PIECE = 2**20
_KEPT_LAYOUTS = 32


@dataclass(frozen=True)
class CortexHeader:
    """The axes of a dense time series.

    Attributes
    ----------
    vertex : ndarray, int32 (N,)
        Cortical positions present, ascending.
    column : ndarray, int64 (N,)
        Column of the file's matrix that holds each of them.
    tr_s : float
        Seconds between volumes.
    n_volumes : int
        T.
    """

    vertex: np.ndarray
    column: np.ndarray
    tr_s: float
    n_volumes: int


@dataclass(frozen=True)
class CortexRecording:
    """The cortex of a recording: ``data`` float32 (T, N) at positions ``vertex``, every ``tr_s``."""

    data: np.ndarray
    vertex: np.ndarray
    tr_s: float


@dataclass(frozen=True)
class Layout:
    """Where a series' matrix (K, T) lies; its values are slope · number + inter."""

    header: CortexHeader
    n_rows: int
    offset: int
    dtype: np.dtype
    slope: float
    inter: float


_layouts: dict[bytes, Layout] = {}


def read_cortex(path: Path) -> CortexRecording:
    """The cortex of a dense time series; raises as `read_layout`, and for unreadable data."""
    file = SeriesFile(path)
    return CortexRecording(file.take(file.header.vertex).T, file.header.vertex, file.header.tr_s)


def read_layout(path: Path) -> Layout:
    """Header of a dense time series (.dtseries.nii, perhaps gzipped), and where its values lie.

    Byte order, number type and the order of structures are free; the medial wall is
    left out. DataError for damage, another kind of file or surface, or a hemisphere
    that is missing.
    """
    require_content(path, "a CIFTI recording")
    with _as_data_error(path), _open(path) as file:
        found = _header_bytes(path, file)
    key = hashlib.sha256(found).digest()
    layout = _layouts.get(key)
    if layout is None:
        layout = _parse(path, found)
        if len(_layouts) >= _KEPT_LAYOUTS:
            _layouts.clear()
        _layouts[key] = layout
    if path.suffix != ".gz":
        needed = layout.offset + layout.n_rows * layout.header.n_volumes * layout.dtype.itemsize
        if path.stat().st_size < needed:
            _refuse_truncated(path, needed, path.stat().st_size)
    return layout


def common_vertices(paths: Iterable[Path]) -> np.ndarray:
    """The positions in all recordings of a subject, int32 (N,), which must not differ."""
    first, *others = paths
    vertex = read_layout(first).header.vertex
    for path in others:
        found = read_layout(path).header.vertex
        if not np.array_equal(found, vertex):
            raise DataError(
                f"expected the {len(vertex)} cortical vertices of {first} in {path}, found {len(found)} that differ; use "
                "recordings of one subject and one pipeline"
            )
    return vertex


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb", buffering=0))


def _header_bytes(path: Path, file: IO[bytes]) -> bytes:
    start = file.read(_NIFTI2_BYTES)
    sizes = [int(np.frombuffer(start, f"{order}i4", 1)[0]) if len(start) >= 4 else 0 for order in "<>"]
    if _NIFTI1_BYTES in sizes:
        _refuse(path, "expected CIFTI-2 grayordinates, found NIfTI-1 data")
    if _NIFTI2_BYTES in sizes and len(start) == _NIFTI2_BYTES:
        offset = int(np.frombuffer(start, "<>"[sizes.index(_NIFTI2_BYTES)] + "i8", 1, 168)[0])
        if _NIFTI2_BYTES <= offset <= _LARGEST_HEADER:
            rest = file.read(offset - _NIFTI2_BYTES)
            if len(rest) == offset - _NIFTI2_BYTES:
                return start + rest
    _refuse(path, "expected a readable CIFTI-2 file, found a damaged or truncated one, or another kind")


def _parse(path: Path, content: bytes) -> Layout:
    with _as_data_error(path):
        image = cifti2.Cifti2Image.from_stream(io.BytesIO(content))
        axes = [image.header.get_axis(i) for i in range(image.header.number_of_mapped_indices)]
        header, proxy = _check_axes(path, axes, image.shape), image.dataobj
        dtype = np.dtype(proxy.dtype)
        if dtype.kind not in "fiu":
            _refuse(path, f"expected real numbers, found {dtype}")
        return Layout(header, int(image.shape[1]), len(content), dtype, float(proxy.slope), float(proxy.inter))


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"{path}: {reason}; supply an intact fsLR-32k .dtseries.nii")


def _refuse_truncated(path: Path, needed: int, found: int) -> NoReturn:
    _refuse(path, f"expected {needed} bytes, found a truncated file of {found}")


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        if "found version 1" in reason:
            raise DataError(
                f"{path}: expected CIFTI-2, found CIFTI-1; convert it: "
                "wb_command -file-convert -cifti-version-convert OLD 2 NEW"
            ) from error
        _refuse(path, f"expected a readable CIFTI-2 file, found a damaged or truncated one ({reason})")


def _check_axes(path: Path, axes: list[Any], shape: tuple[int, ...]) -> CortexHeader:
    kinds = [type(axis).__name__ for axis in axes]
    if kinds != ["SeriesAxis", "BrainModelAxis"]:
        _refuse(
            path, f"expected a dense time series (SeriesAxis, BrainModelAxis), found {', '.join(kinds) or 'no axes'}"
        )
    series, models = axes
    if tuple(shape) != (len(series), len(models)):
        _refuse(path, f"expected data of shape {(len(series), len(models))} from the axes, found {tuple(shape)}")
    if series.unit != "SECOND" or not 0 < series.step < np.inf:
        _refuse(path, f"expected a positive time step in seconds, found {series.step} {series.unit}")
    if len(series) < 1:
        _refuse(path, "expected at least one volume, found none")
    vertex, column = _cortical_positions(path, models)
    return CortexHeader(vertex, column, float(series.step), len(series))


def _cortical_positions(path: Path, models: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ascending cortical positions of a brain-model axis, and their columns."""
    surface_vertex, is_right = surface_vertex_index()
    names = np.asarray(models.name, dtype=str)
    positions, columns = [], []
    for structure, wanted in ((LEFT, False), (RIGHT, True)):
        column = np.flatnonzero((names == structure) & models.surface_mask)
        if not len(column):
            _refuse(path, f"expected both cortices, found no {structure}")
        n_surface = models.nvertices[structure]
        if n_surface != N_SURFACE:
            _refuse(path, f"expected surfaces of {N_SURFACE} vertices (fsLR-32k), found {n_surface} in {structure}")
        vertex = models.vertex[column]
        if vertex.min() < 0 or vertex.max() >= N_SURFACE:
            _refuse(path, f"expected vertices 0…{N_SURFACE - 1} in {structure}, found {vertex.min()}…{vertex.max()}")
        if len(np.unique(vertex)) != len(vertex):
            _refuse(path, f"expected every vertex of {structure} once, found one twice")
        lookup = np.full(N_SURFACE, -1, dtype=np.int32)
        position = np.flatnonzero(is_right == wanted)
        lookup[surface_vertex[position]] = position
        is_kept = lookup[vertex] >= 0
        positions.append(lookup[vertex[is_kept]])
        columns.append(column[is_kept])
    position, column = np.concatenate(positions), np.concatenate(columns)
    if not len(position):
        _refuse(path, "expected cortical vertices, found only the medial wall")
    order = np.argsort(position)
    return position[order].astype(np.int32), column[order]


class SeriesFile:
    """One recording, read block by block in the order of the file, or some vertices of it.

    Parameters
    ----------
    by_vertex : bool
        Blocks hold the cortical vertices in the order of the header instead.

    Attributes
    ----------
    column : ndarray, int64 (N,)
        Row of the blocks that holds each vertex of the header.
    sha256 : str
        Hash of the file (hex), known once `blocks` is exhausted.
    """

    def __init__(self, path: Path, by_vertex: bool = False) -> None:
        self.path = path
        self.layout = read_layout(path)
        self.header = self.layout.header
        self._by_vertex = by_vertex
        self.column = np.arange(len(self.header.vertex)) if by_vertex else self.header.column
        self.sha256 = ""

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the values (rows, T) of each block, valid until the next."""
        if self._by_vertex:
            series = self.take(self.header.vertex)
            for start in range(0, len(series), BLOCK_ROWS):
                yield start, series[start : start + BLOCK_ROWS]
            self.sha256 = hash_file(self.path)
            return
        layout, digest = self.layout, hashlib.sha256()
        buffer = np.empty((min(BLOCK_ROWS, layout.n_rows), self.header.n_volumes), layout.dtype)
        with _as_data_error(self.path), _open(self.path) as file:
            before = bytearray(layout.offset)
            self._fill(file, memoryview(before))
            digest.update(before)
            for start in range(0, layout.n_rows, BLOCK_ROWS):
                block = buffer[: min(BLOCK_ROWS, layout.n_rows - start)]
                raw = _bytes_of(block)
                self._fill(file, raw)
                digest.update(raw)
                yield start, self._values(block)
            while rest := file.read(_PIECE):
                digest.update(rest)
        self.sha256 = hash_file(self.path) if self.path.suffix == ".gz" else digest.hexdigest()

    def take(self, vertex: np.ndarray) -> np.ndarray:
        """The series of some vertices, in their order, float32 (len(vertex), T)."""
        layout, n_volumes = self.layout, self.header.n_volumes
        row_bytes = n_volumes * layout.dtype.itemsize
        rows, inverse = np.unique(self.header.column[np.searchsorted(self.header.vertex, vertex)], return_inverse=True)
        series = np.empty((len(rows), n_volumes), np.float32)
        edges = np.flatnonzero(np.diff(rows) > max(1, _GAP_BYTES // row_bytes)) + 1
        with _as_data_error(self.path), _open(self.path) as file, np.errstate(over="ignore", invalid="ignore"):
            for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True):
                part = np.empty((rows[stop - 1] + 1 - rows[start], n_volumes), layout.dtype)
                file.seek(layout.offset + int(rows[start]) * row_bytes)
                self._fill(file, _bytes_of(part))
                series[start:stop] = self._values(part)[rows[start:stop] - rows[start]]
            while self.path.suffix == ".gz" and file.read(_PIECE):  # the checksum is compared at the end
                pass
        return series if np.array_equal(inverse, np.arange(len(rows))) else series[inverse]

    def _values(self, block: np.ndarray) -> np.ndarray:
        """The values of stored numbers, in the file's own type if they are not scaled."""
        if (self.layout.slope, self.layout.inter) == (1.0, 0.0):
            return block
        return (block * np.float64(self.layout.slope) + self.layout.inter).astype(np.float32)

    def _fill(self, file: IO[bytes], raw: memoryview) -> None:
        done = 0
        while done < len(raw):
            count = file.readinto(raw[done:])  # type: ignore[attr-defined]
            if not count:
                _refuse_truncated(self.path, len(raw), done)
            done += count


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
