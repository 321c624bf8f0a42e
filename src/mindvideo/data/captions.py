"""Captions of frames, from a captioner or a file, joined to one per scan.

Shapes: n scans, F frames per scan, N frames.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.data.bids import read_number, read_text
from mindvideo.errors import DataError
from mindvideo.files import require_content

Captioner = Callable[[np.ndarray], list[str]]
"""Maps frames uint8 (N, H, W, 3) to N captions."""


@dataclass(frozen=True)
class Captioning:
    """A captioner, its ``name``, and its ``cache``, by default ``OUT.captions.jsonl``."""

    captioner: Captioner
    name: str = "captioner"
    cache: Path | None = None

    def describe(self, frames: np.ndarray, out: Path) -> list[list[str]]:
        """Captions of frames, uint8 (n, F, H, W, 3), of the store at ``out``: n lists of F."""
        cache = self.cache or out.with_name(f"{out.name}.captions.jsonl")
        flat = caption_frames(self.captioner, frames.reshape(-1, *frames.shape[2:]), cache, captioner_name=self.name)
        return [flat[start : start + frames.shape[1]] for start in range(0, len(flat), frames.shape[1])]


def caption_windows(frame_captions: Sequence[Sequence[str]], scene: np.ndarray) -> list[str]:
    """One caption per scan from those of its frames (docs/method.md, The encoder).

    Each scene within a scan has the most frequent caption of its frames, the earliest
    if tied. Captions that differ are joined in order: ``A. Then B``.

    Parameters
    ----------
    frame_captions : nested list of str, (n, F)
    scene : ndarray, int (n, F)
        Scene of each frame.

    Returns
    -------
    list of str, (n,)
    """
    return [_join(row, numbers) for row, numbers in zip(frame_captions, scene, strict=True)]


def _join(captions: Sequence[str], scene: np.ndarray) -> str:
    parts: list[str] = []
    for number in dict.fromkeys(scene.tolist()):
        counts = Counter(caption for caption, own in zip(captions, scene, strict=True) if own == number)
        caption = counts.most_common(1)[0][0]
        if not parts or parts[-1] != caption:
            parts.append(caption)
    if len(parts) == 1:
        return parts[0]
    return ". Then ".join([*(part.rstrip(" .") for part in parts[:-1]), parts[-1]])


def read_captions(
    path: Path,
    times_s: Mapping[str, np.ndarray],
    other_names: Mapping[str, Sequence[str]] | None = None,
    first: Mapping[str, int] | None = None,
) -> dict[str, list[list[str]]]:
    """Read a user's captions and give one to every frame.

    Parameters
    ----------
    path : Path
        A ``.csv`` of ``segment, scan, caption`` (scans from 0) or ``segment, time_s,
        caption`` (from that time on), or a ``.json`` of ``{segment: [caption of scan 0,
        …]}`` or of F captions for a scan.
    times_s : mapping of str to ndarray, float (n, F)
        Movie time of each frame, by segment; other segments in the file are ignored.
    other_names : mapping of str to sequence of str, optional
        What else the file may call a segment.
    first : mapping of str to int, optional
        Scans before a segment that is part of a film, in captions of the whole film.

    Returns
    -------
    dict of str to nested list of str, (n, F)

    Raises
    ------
    DataError
        For a missing or malformed file, or captions that are missing, repeated or empty.
    """
    require_content(path, "captions (a csv or json file, or 'blip')")
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"expected captions as .csv or .json, found {path}")
    names = {other: segment for segment, others in (other_names or {}).items() for other in others}
    names |= {segment: segment for segment in times_s}
    key, rows = readers[path.suffix.lower()](path, names)
    result: dict[str, list[list[str]]] = {}
    for segment, times in times_s.items():
        own = rows.get(segment, {})
        if key == "time_s":
            result[segment] = _spread_times(path, segment, own, times)
        else:
            result[segment] = _spread_scans(path, segment, own, times.shape, (first or {}).get(segment))
    return result


Rows = dict[str, dict[float, Any]]
"""Captions by segment and place in it: a text, or one for each frame."""


def _read_json(path: Path, names: Mapping[str, str]) -> tuple[str, Rows]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # thousands of digits are no JSONDecodeError
        raise DataError(f"{path} is not valid JSON ({error}); repair it") from error
    if not isinstance(content, dict):
        raise DataError(f"expected {{segment: [caption per scan]}} in {path}, found a {type(content).__name__}")
    listed = {names[name]: rows for name, rows in content.items() if name in names and isinstance(rows, list)}
    return "scan", {segment: dict(enumerate(rows)) for segment, rows in listed.items()}


def _read_csv(path: Path, names: Mapping[str, str]) -> tuple[str, Rows]:
    rows: Rows = {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, strict=True)
        columns = list(reader.fieldnames or ())
        key = "scan" if "scan" in columns else "time_s"
        if not {"segment", key, "caption"} <= set(columns) or len(set(columns)) < len(columns):
            raise DataError(
                f"expected the columns segment, scan (or time_s) and caption once each in {path}, "
                f"found {', '.join(columns) or 'none'}"
            )
        for row in reader:
            if None in row:
                raise DataError(
                    f"expected {len(columns)} values on line {reader.line_num} of {path}, found more; put captions that "
                    'hold a comma in "quotation marks"'
                )
            if segment := names.get(row["segment"] or ""):
                place = read_number(row[key] or "")
                if not 0 <= place < 1e9 or (key == "scan" and place != int(place)):
                    raise DataError(
                        f"expected a non-negative {key} on line {reader.line_num} of {path}, found {row[key]!r}"
                    )
                if place in rows.setdefault(segment, {}):
                    raise DataError(f"expected one caption for {key} {place:g} of {segment} in {path}, found two")
                rows[segment][place] = _checked(row["caption"], path, segment, f"{key} {place:g}")
    except csv.Error as error:
        raise DataError(f"{path} is not a valid csv file ({error}); repair it") from error
    return key, rows


def _checked(caption: object, path: Path, segment: str, where: str) -> str:
    if not isinstance(caption, str) or not caption.strip():
        raise DataError(f"expected a caption for {where} of {segment} in {path}, found {caption!r}; write one")
    return caption.strip()


def _spread_scans(
    path: Path, segment: str, rows: dict[float, Any], shape: tuple[int, ...], first: int | None
) -> list[list[str]]:
    n_scans, n_frames = shape
    if first is not None and len(rows) > n_scans and len(rows) >= first + n_scans:  # captions of the whole film
        rows = {scan - first: caption for scan, caption in rows.items() if first <= scan < first + n_scans}
    missing = [scan for scan in range(n_scans) if scan not in rows]
    if missing or len(rows) != n_scans:
        named = f"missing scans: {', '.join(map(str, missing[:5]))}" if missing else f"last scan: {max(rows):g}"
        raise DataError(f"expected {n_scans} captions of {segment} in {path}, found {len(rows)} ({named})")
    result = []
    for scan in range(n_scans):
        captions = rows[scan] if isinstance(rows[scan], list) else [rows[scan]] * n_frames
        if len(captions) != n_frames:
            raise DataError(
                f"expected one caption or {n_frames} for scan {scan} of {segment} in {path}, found {len(captions)}"
            )
        result.append([_checked(caption, path, segment, f"scan {scan}") for caption in captions])
    return result


def _spread_times(path: Path, segment: str, rows: dict[float, Any], times: np.ndarray) -> list[list[str]]:
    starts = np.array(sorted(rows))
    if not len(starts) or starts[0] > times.min() + 1e-3:
        found = f"the first at {starts[0]:g} s" if len(starts) else "none"
        raise DataError(f"expected captions of {segment} from {times.min():g} s on in {path}, found {found}; add them")
    index = np.searchsorted(starts - 1e-3, times, side="right") - 1
    return [[rows[starts[i]] for i in row] for row in index]


def caption_frames(
    captioner: Captioner, frames: np.ndarray, cache_path: Path, batch: int = 32, captioner_name: str = ""
) -> list[str]:
    """Caption frames, uint8 (N, H, W, 3), in batches, or read known ones from the cache.

    The cache is a file of JSON lines, which grows by a batch at a time.
    """
    cache = _read_cache(cache_path)
    keys = [_frame_key(frame, captioner_name) for frame in frames]
    index_of = {key: index for index, key in reversed(list(enumerate(keys))) if key not in cache}
    todo = sorted(index_of.items(), key=lambda item: item[1])
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        captions = captioner(np.stack([frames[index] for _, index in part]))
        if len(captions) != len(part) or not all(isinstance(caption, str) for caption in captions):
            raise DataError(f"expected {len(part)} captions from the captioner, found {len(captions)}")
        new = {key: caption.strip() for (key, _), caption in zip(part, captions, strict=True)}
        _append_cache(cache_path, new)
        cache.update(new)
    return [cache[key] for key in keys]


def _frame_key(frame: np.ndarray, captioner_name: str) -> str:
    digest = hashlib.sha256(f"{captioner_name}\0{frame.shape}\0".encode())
    digest.update(np.ascontiguousarray(frame).tobytes())
    return digest.hexdigest()


def _digest(row: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def _read_cache(path: Path) -> dict[str, str]:
    """Captions by key; a last line cut off by a kill is dropped from the file."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    cache: dict[str, str] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            if row.pop("digest") != _digest(row):
                raise ValueError("other content")
            cache[row["key"]] = row["caption"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"line {number} of the caption cache {path} is not as it was written; delete that line, and its frame is "
                "captioned again"
            ) from error
    return cache


def _append_cache(path: Path, captions: dict[str, str]) -> None:
    rows = [{"key": key, "caption": caption} for key, caption in captions.items()]
    text = "".join(json.dumps(row | {"digest": _digest(row)}) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise DataError(f"cannot write the caption cache {path}: {error.strerror or error}") from error
