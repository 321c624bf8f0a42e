"""Time series straight from a dense CIFTI file: one pass for values and hash, or only the wanted vertices.

A plain file (not compressed, float32, not scaled) holds the series of one grayordinate after the other, so blocks of
grayordinates are read, hashed and worked on while they are in the processor's cache, and a few vertices are read without
the rest. Other files go through nibabel. Files with the same header bytes, as all runs of a study have, are parsed once.

Shapes: N vertices of a file, K rows of its matrix (all grayordinates), T volumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from mindvideo.data.cifti import CortexHeader, open_recording, read_cortex
from mindvideo.errors import DataError
from mindvideo.files import hash_file

BLOCK_ROWS = 1024
"""Rows read at once: about 1 MB at 245 volumes."""

_HEADER_BYTES = 540
_LARGEST_HEADER = 64 * 2**20
_GAP_BYTES = 16384
"""Wanted rows nearer than this are read in one go."""
_PIECE = 2**20
_KEPT_LAYOUTS = 32


@dataclass(frozen=True)
class Layout:
    """Where the matrix of a dense time series lies.

    Attributes
    ----------
    header : CortexHeader
    n_rows : int
        Grayordinates K.
    offset : int
        First byte of the matrix.
    dtype : numpy dtype or None
        float32 in the file's byte order; None where nibabel has to read the file.
    """

    header: CortexHeader
    n_rows: int
    offset: int
    dtype: np.dtype | None


_layouts: dict[bytes, Layout] = {}


def read_layout(path: Path) -> Layout:
    """Header of a dense time series and where its values lie; equal headers are parsed once.

    Raises
    ------
    DataError
        As `mindvideo.data.cifti.read_header`, and for a file shorter than its header promises.
    """
    found = _header_bytes(path)
    key = hashlib.sha256(found).digest() if found is not None else None
    layout = _layouts.get(key) if key is not None else None
    if layout is None:
        layout = _parse_layout(path, len(found) if found is not None else None)
        if key is not None:
            if len(_layouts) >= _KEPT_LAYOUTS:
                _layouts.clear()
            _layouts[key] = layout
    if layout.dtype is not None:
        needed = layout.offset + layout.n_rows * layout.header.n_volumes * layout.dtype.itemsize
        size = path.stat().st_size
        if size < needed:
            _refuse_truncated(path, needed, size)
    return layout


def _header_bytes(path: Path) -> bytes | None:
    """All bytes before the matrix of an uncompressed NIfTI-2 file; None for anything else."""
    if path.suffix == ".gz" or not path.is_file():
        return None
    with _reading(path), path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
        for order in ("<", ">"):
            if len(start) == _HEADER_BYTES and int(np.frombuffer(start, f"{order}i4", 1)[0]) == _HEADER_BYTES:
                offset = int(np.frombuffer(start, f"{order}i8", 1, 168)[0])
                if _HEADER_BYTES <= offset <= _LARGEST_HEADER:
                    rest = file.read(offset - _HEADER_BYTES)
                    return start + rest if len(rest) == offset - _HEADER_BYTES else None
    return None


def _parse_layout(path: Path, header_bytes: int | None) -> Layout:
    """The layout according to nibabel; plain only where nothing is left to guess."""
    image, header = open_recording(path)
    proxy = image.dataobj
    dtype = np.dtype(getattr(proxy, "dtype", object))
    is_plain = (
        header_bytes is not None
        and getattr(proxy, "offset", None) == header_bytes
        and getattr(proxy, "order", "") == "F"
        and (proxy.slope, proxy.inter) == (1.0, 0.0)
        and dtype.kind == "f"
        and dtype.itemsize == 4
    )
    return Layout(header, int(image.shape[1]), header_bytes or 0, dtype if is_plain else None)


def _refuse_truncated(path: Path, needed: int, found: int) -> NoReturn:
    raise DataError(
        f"{path}: expected {needed} bytes, found a truncated file of {found}; supply an intact fsLR-32k .dtseries.nii"
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"expected a readable file at {path}, found: {error.strerror or error}") from error


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


class SeriesFile:
    """One recording, read block by block in the order of the file.

    Parameters
    ----------
    path : Path
    is_whole : bool
        Let nibabel read the whole cortex, whatever the layout; rows are then the vertices.

    Attributes
    ----------
    header : CortexHeader
    column : ndarray, int64 (N,)
        Row of the blocks that holds each vertex of the header.
    is_plain : bool
        Whether blocks come straight from the file.
    sha256 : str
        Hash of the file (hex), known once `blocks` is exhausted.
    """

    def __init__(self, path: Path, is_whole: bool = False) -> None:
        """Read the header."""
        self.path = path
        self.layout = read_layout(path)
        self.header = self.layout.header
        self.is_plain = self.layout.dtype is not None and not is_whole
        self.column = self.header.column if self.is_plain else np.arange(len(self.header.vertex))
        self.sha256 = ""

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the values (rows, T) of each block; valid until the next one is asked for."""
        if not self.is_plain:
            series = read_cortex(self.path).data.T
            for start in range(0, len(series), BLOCK_ROWS):
                yield start, series[start : start + BLOCK_ROWS]
            self.sha256 = hash_file(self.path)
            return
        layout, digest = self.layout, hashlib.sha256()
        assert layout.dtype is not None
        n_volumes = self.header.n_volumes
        buffer = np.empty((min(BLOCK_ROWS, layout.n_rows), n_volumes), layout.dtype)
        with _reading(self.path), self.path.open("rb", buffering=0) as file:
            before = bytearray(layout.offset)
            self._fill(file, memoryview(before))
            digest.update(before)
            for start in range(0, layout.n_rows, BLOCK_ROWS):
                block = buffer[: min(BLOCK_ROWS, layout.n_rows - start)]
                raw = _bytes_of(block)
                self._fill(file, raw)
                digest.update(raw)
                yield start, block
            while rest := file.read(_PIECE):
                digest.update(rest)
        self.sha256 = digest.hexdigest()

    def take(self, vertex: np.ndarray) -> np.ndarray:
        """The series of some vertices, in their order, float32 (len(vertex), T); reads little else.

        Parameters
        ----------
        vertex : ndarray, int
            Cortical positions, all of them among ``header.vertex``.
        """
        column = self.column[np.searchsorted(self.header.vertex, vertex)]
        if not self.is_plain:
            return np.ascontiguousarray(read_cortex(self.path).data.T[column])
        layout = self.layout
        assert layout.dtype is not None
        row_bytes = self.header.n_volumes * layout.dtype.itemsize
        rows, inverse = np.unique(column, return_inverse=True)
        series = np.empty((len(rows), self.header.n_volumes), np.float32)
        edges = np.flatnonzero(np.diff(rows) > max(1, _GAP_BYTES // row_bytes)) + 1
        with _reading(self.path), self.path.open("rb", buffering=0) as file:
            for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True):
                part = np.empty((rows[stop - 1] + 1 - rows[start], self.header.n_volumes), layout.dtype)
                file.seek(layout.offset + int(rows[start]) * row_bytes)
                self._fill(file, _bytes_of(part))
                series[start:stop] = part[rows[start:stop] - rows[start]]
        return series if np.array_equal(inverse, np.arange(len(rows))) else series[inverse]

    def _fill(self, file: object, raw: memoryview) -> None:
        done = 0
        while done < len(raw):
            count = file.readinto(raw[done:])  # type: ignore[attr-defined]
            if not count:
                _refuse_truncated(self.path, len(raw), done)
            done += count
