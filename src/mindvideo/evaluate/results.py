"""Clips that others made: films, arrays, sequences of pictures, side-by-side GIFs.

Shapes: a clip is uint8 (F, H, W, 3); clips of one source may differ in F, H and W until
`align_clips`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mindvideo.data.arrays import read_npy
from mindvideo.data.store import listed, natural_key
from mindvideo.data.video import SUFFIXES, fit_square, read_whole_film, resize
from mindvideo.errors import DataError
from mindvideo.evaluate.seam import find_layout
from mindvideo.files import require_content

Kind = Literal["gif", "film", "array", "picture", "sequence"]
PICTURES = (".png", ".jpg", ".jpeg")
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Clips:
    """Clips in natural order of their names.

    Attributes
    ----------
    names : list of str
        File or folder names without their endings.
    clips : list of ndarray, uint8 (F, H, W, 3)
    notes : list of str
        What was cut or changed while reading.
    """

    names: list[str]
    clips: list[np.ndarray]
    notes: list[str] = field(default_factory=list)


def _kind(path: Path) -> Kind | None:
    """What a file or folder holds, by its ending; None for something else."""
    if path.is_dir():
        return "sequence" if any(item.suffix.lower() in PICTURES for item in path.iterdir()) else None
    known: dict[Kind, tuple[str, ...]] = {"gif": (".gif",), "film": SUFFIXES, "array": (".npy",), "picture": PICTURES}
    return next((kind for kind, endings in known.items() if path.suffix.lower() in endings), None)


def _entries(folder: Path) -> list[Path]:
    """The clips of a folder in natural order, all of one kind."""
    found: dict[Kind, list[Path]] = {}
    for path in folder.iterdir():
        kind = None if path.name.startswith(".") else _kind(path)
        if kind is not None:
            found.setdefault(kind, []).append(path)
    if len(found) != 1:
        kinds = ", ".join(f"{len(paths)} of kind {kind}" for kind, paths in found.items()) or "none"
        raise DataError(
            f"expected clips of one kind in {folder} (gif, {', '.join(SUFFIXES)}, npy, png or folders of png), found {kinds}; "
            "give a folder with one of them, or a run folder (with recipe.yaml)"
        )
    (paths,) = found.values()
    return _in_natural_order(paths)


def _in_natural_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(path.name.lower()))


def read_clip(path: Path) -> tuple[np.ndarray, list[str]]:
    """Frames of a file or a folder of pictures, maybe of n clips, and what was changed."""
    kind = _kind(path)
    if kind == "array":
        return _as_frames(np.array(read_npy(path)), path, (4, 5))
    if kind == "sequence":
        return _read_sequence(path)
    if kind == "picture":
        return _read_picture(path)[None], []
    return read_gif(path) if kind == "gif" else read_whole_film(path), []


def read_clips(source: Path) -> Clips:
    """Read every clip of a folder, or of one ``.npy`` file (n, F, H, W, 3) with all of them.

    A folder holds films, GIFs, ``.npy`` clips, pictures (one frame each) or folders of pictures (a
    sequence each). Arrays are uint8, or floats in 0…1 that are scaled by 255; channels may come before
    height and width. DataError for a missing, empty or mixed folder, or a damaged file.
    """
    if source.is_file() and source.suffix.lower() == ".npy":
        array, said = _as_frames(np.array(read_npy(source)), source, (5,))
        return Clips([str(number) for number in range(len(array))], list(array), said)
    if not source.is_dir():
        raise DataError(f"expected a folder of clips or one .npy file at {source}, found none")
    names: list[str] = []
    clips: list[np.ndarray] = []
    notes: list[str] = []
    for path in _entries(source):
        frames, said = read_clip(path)
        whole = list(frames) if frames.ndim == 5 else [frames]
        stem = path.name if path.is_dir() else path.stem
        names += [stem] if frames.ndim == 4 else [f"{stem}[{number}]" for number in range(len(whole))]
        clips += whole
        notes += said
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"expected every clip of {source} once, found more than one named {', '.join(repeated[:5])}")
    return Clips(names, clips, list(dict.fromkeys(notes)))


def _as_frames(array: np.ndarray, path: Path, dimensions: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Uint8 with channels last; DataError for other arrays."""
    notes = []
    if array.ndim in dimensions and array.shape[-1] != 3 and array.shape[-3] == 3:
        array = np.moveaxis(array, -3, -1)
        notes.append("arrays have channels before height and width")
    wanted = " or ".join({4: "(F, H, W, 3)", 5: "(n, F, H, W, 3)"}[number] for number in dimensions)
    if array.ndim not in dimensions or array.shape[-1] != 3 or not all(array.shape):
        raise DataError(f"expected {wanted} in {path}, found shape {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise DataError(f"expected uint8, or floats in 0…1, in {path}, found floats outside 0…1; scale them first")
        array = np.round(array * 255).astype(np.uint8)
        notes.append("arrays of floats in 0…1 were scaled by 255")
    if array.dtype != np.uint8:
        raise DataError(f"expected uint8, or floats in 0…1, in {path}, found {array.dtype}")
    return np.ascontiguousarray(array), notes


def _read_picture(path: Path) -> np.ndarray:
    require_content(path, "a picture")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"expected a picture at {path}, found a damaged or unknown file ({error})") from None


def _read_sequence(folder: Path) -> tuple[np.ndarray, list[str]]:
    pictures = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    frames = [_read_picture(path) for path in _in_natural_order(pictures)]
    sizes = sorted({frame.shape for frame in frames})
    if len(sizes) != 1:
        raise DataError(f"expected frames of one size in {folder}, found {', '.join(map(str, sizes))}")
    return np.stack(frames), []


def read_gif(path: Path) -> np.ndarray:
    """Every frame of a GIF, uint8 (F, H, W, 3).

    Writers merge equal neighbouring frames; one shown k times as long as the shortest counts k times.
    """
    require_content(path, "a GIF")
    pictures, durations = [], []
    try:
        with Image.open(path) as film:
            for frame in ImageSequence.Iterator(film):
                pictures.append(np.asarray(frame.convert("RGB")))
                durations.append(frame.info.get("duration", 0))
    except (UnidentifiedImageError, OSError, EOFError) as error:
        raise DataError(f"expected a GIF at {path}, found a damaged or unknown file ({error})") from None
    shortest = min((duration for duration in durations if duration > 0), default=1)
    times = [max(1, round(duration / shortest)) for duration in durations]
    return np.repeat(np.stack(pictures), times, axis=0)


def split_side_by_side(films: Clips) -> tuple[Clips, Clips]:
    """Truth (left) and reconstruction (right); their notes say what was cut."""
    layout = find_layout(films.clips)
    notes = [*films.notes, f"side by side: {layout.note}"]
    truth, reconstruction = zip(*(layout.split(film) for film in films.clips), strict=True)
    return Clips(films.names, list(truth), notes), Clips(films.names, list(reconstruction), notes)


def pair_clips(clips: Clips, reference: Clips) -> tuple[Clips, Clips]:
    """Both sets in one order, by equal names or last numbers; DataError without a partner."""

    def last_numbers(names: Sequence[str]) -> list[str]:
        found = [re.findall(r"\d+", name) for name in names]
        return [str(int(numbers[-1])) if numbers else name for numbers, name in zip(found, names, strict=True)]

    for keys in (clips.names, reference.names), (last_numbers(clips.names), last_numbers(reference.names)):
        if len(set(keys[0])) == len(keys[0]) and sorted(keys[0]) == sorted(keys[1]):
            chosen = [keys[1].index(key) for key in keys[0]]
            names = [reference.names[i] for i in chosen]
            return clips, Clips(names, [reference.clips[i] for i in chosen], reference.notes)
    ours = dict(zip(keys[0], clips.names, strict=True))
    theirs = dict(zip(keys[1], reference.names, strict=True))
    unpaired = [name for key, name in ours.items() if key not in theirs]
    missing = [name for key, name in theirs.items() if key not in ours]
    raise DataError(
        f"expected as many clips as true ones with equal names or numbers, found {len(clips.names)} and "
        f"{len(reference.names)}; without a true clip: {listed(unpaired) or 'none'}; without a reconstruction: {listed(missing) or 'none'}"
    )


def align_clips(
    clips: Clips, truth: Clips, size: int | None = None, fit: Literal["stretch", "crop"] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Both sets, of equal length and in one order, with one number and size of frames.

    Frames: the smaller of the two sets' most frequent numbers; of longer clips the frames at the
    middles of as many equal parts are kept, of shorter ones frames repeat. Size: the smaller of the
    two heights and widths, or ``size`` squared, by area averaging. DataError where shapes differ by
    more than 2 % in width over height and ``fit`` does not say what to do.

    Returns
    -------
    clips, truth : ndarray, uint8 (n, F, H, W, 3)
    notes : list of str
        What was changed.
    """
    notes = []
    counts = [Counter(len(clip) for clip in part.clips) for part in (clips, truth)]
    n_frames = min(count.most_common(1)[0][0] for count in counts)
    shapes = [Counter(clip.shape[1:3] for clip in part.clips).most_common(1)[0][0] for part in (clips, truth)]
    height, width = (size, size) if size is not None else min(shapes, key=lambda shape: shape[0] * shape[1])
    arrays = []
    for what, part in (("reconstruction", clips), ("truth", truth)):
        odd = [name for name, clip in zip(part.names, part.clips, strict=True) if len(clip) != n_frames]
        if odd:
            notes.append(f"{what}: {len(odd)} of {len(part.names)} clips brought to {n_frames} frames ({listed(odd)})")
        other = {clip.shape[1:3] for clip in part.clips} - {(height, width)}
        if other:
            found = ", ".join(f"{h} x {w}" for h, w in sorted(other))
            notes.append(f"{what}: frames of {found} brought to {height} x {width}" + (f" by {fit}" if fit else ""))
        arrays.append(np.stack([_fit_clip(clip, n_frames, height, width, fit, name)
                                for name, clip in zip(part.names, part.clips, strict=True)]))  # fmt: skip
    return arrays[0], arrays[1], notes


def _fit_clip(clip: np.ndarray, n_frames: int, height: int, width: int, fit: str | None, name: str) -> np.ndarray:
    if len(clip) != n_frames:
        clip = clip[((np.arange(n_frames) + 0.5) * len(clip) / n_frames).astype(int)]
    if clip.shape[1:3] == (height, width):
        return clip
    found_height, found_width = clip.shape[1:3]
    if abs(found_width / found_height / (width / height) - 1) > ASPECT_TOLERANCE:
        if fit is None:
            raise DataError(
                f"expected frames shaped like {height} x {width}, found {found_height} x {found_width} in '{name}'; "
                "say what to do with --fit crop or --fit stretch"
            )
        if fit == "crop":
            if height != width:
                raise DataError(f"expected a square result for --fit crop, found {height} x {width}; give --size too")
            return np.stack([fit_square(frame, height, "crop") for frame in clip])
    return np.stack([resize(frame, height, width) for frame in clip])
