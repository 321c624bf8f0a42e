"""The two published layouts, of npy files and torch tensors (docs/method.md, What others publish).

Shapes: S segments of n scans, F frames a scan, R repeats, V voxels, N = S · n, H W pixels.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mindvideo.config import Data
from mindvideo.errors import DataError, one_line
from mindvideo.files import require_content, walk_files

_BLOCK_SCANS = 16


def read_npy(path: Path) -> np.ndarray:
    """An npy file, mapped into memory, never unpickled.

    DataError for damage, other objects, or bytes after the array.
    """
    require_content(path, "an array")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly anything
        raise DataError(
            f"expected an intact npy file of plain numbers or strings at {path}, found something else ({one_line(error)}); "
            "pickled objects are not read, save them as a plain array"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"expected one array in {path}, found an archive of several; save it as npy")
    end = getattr(array, "offset", 0) + array.nbytes
    if array.nbytes and end != (size := path.stat().st_size):
        raise DataError(
            f"expected {end:,} bytes in {path}, as its header says (an array {array.shape} of {array.dtype}), found {size:,}; "
            "save it again, or copy it again whole"
        )
    return array


def read_pt(path: Path) -> Any:
    """Tensors, strings, lists and plain NumPy arrays of a torch file; nothing in it is executed.

    Tensors of zip files are mapped into memory. DataError for damage or other objects.
    """
    import torch

    require_content(path, "an array")
    try:
        with torch.serialization.safe_globals(_plain_types()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile file raises nearly anything
        raise DataError(
            f"expected a torch file of plain tensors or strings at {path}, found damage or other objects, which are "
            f"never executed ({one_line(error)}); download it again or save it as plain tensors"
        ) from error


def _plain_types() -> list[Any]:
    """What rebuilds NumPy arrays and scalars, which torch does not allow by itself."""
    rebuild: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    older = [(function, f"numpy.core.multiarray.{function.__name__}") for function in rebuild]  # NumPy 1's name
    kinds = [type(np.dtype(kind)) for kind in ("U1", "S1", "O", "f2", "f4", "f8", "i4", "i8", "u1")]
    return [np.ndarray, np.dtype, *rebuild, *older, *kinds]


class _Folder:
    """One subject of a published layout."""

    fmri_name: ClassVar[re.Pattern[str]]
    root: Path
    _segments: dict[str, int]

    def __init__(self, fmri_train: Path) -> None:
        self._folder = fmri_train.parent
        names = {split: fmri_train.name.replace("train", split) for split in ("train", "test")}
        self._fmri_files = {split: fmri_train.with_name(name) for split, name in names.items()}

    @classmethod
    def find_subjects(cls, folder: Path) -> dict[int, Path]:
        """The training fMRI of each subject in a folder, by the subject's number."""
        found: dict[int, Path] = {}
        for path in walk_files(folder):
            if match := cls.fmri_name.fullmatch(path.name):
                if int(match[1]) in found:
                    raise DataError(f"expected one {path.name} below {folder}, found {found[int(match[1])]} and {path}")
                found[int(match[1])] = path
        return found

    def segment_names(self, split: str) -> list[str]:
        """``seg1``… for ``train``, ``test1``… for ``test``, as their makers called them."""
        prefix = "seg" if split == "train" else "test"
        return [f"{prefix}{number}" for number in range(1, self._segments[split] + 1)]


class MindVideoFolder(_Folder):
    """``preprocessed/``: ``fmri_…``, ``video_…``, ``text_…`` arrays of the shapes (S, n, …)."""

    name = "MinD-Video"
    pattern = "fmri_train_subjectN.npy"
    fmri_name = re.compile(r"fmri_train_subject(\d+)\.npy")
    done = (
        "volumes trimmed to the film", "runs detrended and standardised", "runs averaged", "voxels selected and ordered",
        "frames cut at 3 per second and resized", "frames captioned",
    )  # fmt: skip
    repeats_note = "1: the publishers kept the average only"

    def __init__(self, fmri_train: Path, data: Data) -> None:
        super().__init__(fmri_train)
        video = {split: self._one(f"video_{split}_*_{data.fps}hz.npy") for split in self._fmri_files}
        self._fmri = {split: read_npy(path) for split, path in self._fmri_files.items()}
        self._video = {split: read_npy(path) for split, path in video.items()}
        self._text: dict[str, np.ndarray] = {}
        files = [*self._fmri_files.values(), *video.values()]
        if data.captions == "published":
            text = {split: path.with_name(path.name.replace("video", "text", 1)) for split, path in video.items()}
            self._text = {split: read_npy(path) for split, path in text.items()}
            files += text.values()
        scenes = self._folder / f"test_seg_id_{data.fps}hz.npy"
        self._scenes = read_npy(scenes) if scenes.is_file() else None
        self.files: tuple[Path, ...] = (*files, scenes) if self._scenes is not None else tuple(files)
        self._check()
        shape = self._video["train"].shape
        self.n_scans, self.num_frames, self.size = shape[1], shape[2], shape[3]
        self.n_voxels = self._fmri["train"].shape[2]
        self._segments = {split: len(array) for split, array in self._video.items()}

    def _one(self, pattern: str) -> Path:
        found = sorted(self._folder.glob(pattern))
        if len(found) != 1:
            raise DataError(
                f"expected one file {pattern} in {self._folder}, found {len(found)}; download it, or set data.fps to the "
                "frame rate in its name"
            )
        return found[0]

    def _check(self) -> None:
        for split, video in self._video.items():
            place = f"{self._folder}/video_{split}"
            is_square = video.ndim == 6 and video.shape[3] == video.shape[4] and video.shape[5] == 3
            if not is_square or video.dtype.kind not in "uif":
                raise DataError(f"expected numbers (segments, scans, frames, H, H, 3) in {place}…, found {video.shape}")
            fmri, wanted = self._fmri[split], video.shape[:2]
            if fmri.ndim != 3 or fmri.shape[:2] != wanted or fmri.dtype.kind != "f":
                raise DataError(
                    f"expected fMRI {wanted + ('voxels',)} beside {place}…, found {fmri.dtype} {fmri.shape} for {split}"
                )
            text = self._text.get(split)
            if text is not None and (text.shape != video.shape[:3] or text.dtype.kind not in "US"):
                raise DataError(f"expected strings {video.shape[:3]} in text_{split}…, found {text.dtype} {text.shape}")
        for name, arrays in (("frames", self._video), ("fmri", self._fmri)):
            train, test = arrays["train"].shape, arrays["test"].shape
            if train[1:] != test[1:]:
                raise DataError(
                    f"expected {name} of one shape for train and test in {self._folder}, found {train} and {test}"
                )
        if self._scenes is not None and self._scenes.shape != self._video["test"].shape[:2]:
            wanted = self._video["test"].shape[:2]
            raise DataError(f"expected scene numbers {wanted} in test_seg_id…, found {self._scenes.shape}")

    def repeats(self, split: str, index: int) -> np.ndarray:
        """FMRI of a segment, float32 (R, n, V)."""
        return np.asarray(self._fmri[split][index], dtype=np.float32)[None]

    def frames(self, split: str, index: int) -> np.ndarray:
        """Frames of a segment, uint8 (n, F, H, W, 3)."""
        part = np.asarray(self._video[split][index])
        if part.dtype == np.uint8:
            return part
        whole = np.rint(part)
        if not np.array_equal(whole, part) or whole.min() < 0 or whole.max() > 255:
            raise DataError(
                f"expected whole numbers 0…255 in video_{split}_256_3hz.npy of {self._folder}, found {part.dtype} from "
                f"{part.min():g} to {part.max():g}; save the frames as uint8, times 255 where they lie in 0…1"
            )
        return whole.astype(np.uint8)

    def captions(self, split: str, index: int) -> list[list[str]]:
        """Captions of the frames of a segment, n lists of F."""
        rows = np.asarray(self._text[split][index]).astype(str)
        return _checked([[text.strip() for text in row] for row in rows.tolist()], f"{self._folder}/text_{split}…")

    def notes(self) -> dict[str, Any]:
        """Further notes for the provenance."""
        if self._scenes is None:
            return {}
        overlaps = int((np.asarray(self._scenes).astype(str) == "-").sum())
        return {"test_seg_id": f"{overlaps} test scans overlap a scene change according to the publishers; not used"}


class NeuroClipsFolder(_Folder):
    """``subj0N_…_fmri.pt`` (N, R, V), ``GT_…_3fps.pt`` (N, F, 3, H, W) in [0, 1], ``GT_…_caption.pt``."""

    name = "NeuroClips"
    pattern = "subj0N_train_fmri.pt"
    fmri_name = re.compile(r"subj(\d+)_train_fmri\.pt")
    done = (
        "volumes trimmed to the film", "runs detrended and standardised", "voxels selected",
        "frames cut at 3 per second and resized", "clips captioned", "films cut into clips of one scan",
    )  # fmt: skip
    repeats_note = "the second axis of the published tensors"

    def __init__(self, fmri_train: Path, data: Data) -> None:
        super().__init__(fmri_train)
        self.n_scans: int = data.own.segment_scans
        clips = {split: self._folder / f"GT_{split}_{data.fps}fps.pt" for split in self._fmri_files}
        self._fmri = {split: self._tensor(path, 3) for split, path in self._fmri_files.items()}
        self._clips = {split: self._tensor(path, 5) for split, path in clips.items()}
        self._text: dict[str, list[list[str]]] = {}
        files = [*self._fmri_files.values(), *clips.values()]
        shape = self._clips["train"].shape
        self.num_frames, self.size, self.n_voxels = shape[1], shape[3], self._fmri["train"].shape[2]
        self._segments = {split: self._count(split) for split in clips}
        if data.captions == "published":
            text = {split: self._folder / f"GT_{split}_caption.pt" for split in clips}
            self._text = {split: self._captions(path, len(self._clips[split])) for split, path in text.items()}
            files += text.values()
        self.files: tuple[Path, ...] = tuple(files)

    def _tensor(self, path: Path, n_axes: int) -> Any:
        import torch

        tensor = read_pt(path)
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind in "fu":
            tensor = torch.from_numpy(tensor)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != n_axes or tensor.is_complex():
            found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise DataError(f"expected a tensor of {n_axes} axes in {path}, found {found}; download it again")
        return tensor

    def _count(self, split: str) -> int:
        fmri, clips = self._fmri[split], self._clips[split]
        wanted = (len(clips), self.num_frames, 3, self.size, self.size)
        if tuple(clips.shape) != wanted:
            raise DataError(f"expected clips {wanted} in GT_{split}… of {self._folder}, found {tuple(clips.shape)}")
        if len(fmri) != len(clips) or fmri.shape[2] != self.n_voxels or fmri.shape[1] < 1:
            raise DataError(
                f"expected fMRI ({len(clips)}, repeats, {self.n_voxels}) for {split} in {self._folder}, found "
                f"{tuple(fmri.shape)}"
            )
        if not len(clips) or len(clips) % self.n_scans:
            raise DataError(
                f"expected a multiple of {self.n_scans} {split} scans (the length of a film) in {self._folder}, found "
                f"{len(clips)}; state the length of the films as published.segment_scans (--segment-scans)"
            )
        return len(clips) // self.n_scans

    def _captions(self, path: Path, n_clips: int) -> list[list[str]]:
        content = read_pt(path)
        rows = content.tolist() if isinstance(content, np.ndarray) else content
        if not isinstance(rows, list | tuple) or len(rows) != n_clips:
            found = len(rows) if isinstance(rows, list | tuple) else type(rows).__name__
            raise DataError(f"expected {n_clips} captions in {path}, found {found}; download it again")
        listed = [[row] * self.num_frames if isinstance(row, str) else list(row) for row in rows]
        if any(len(row) != self.num_frames or not all(isinstance(text, str) for text in row) for row in listed):
            raise DataError(f"expected one string or {self.num_frames} for each clip in {path}, found something else")
        return _checked([[text.strip() for text in row] for row in listed], str(path))

    def _rows(self, index: int) -> slice:
        return slice(index * self.n_scans, (index + 1) * self.n_scans)

    def repeats(self, split: str, index: int) -> np.ndarray:
        """FMRI of a segment, float32 (R, n, V)."""
        part = self._fmri[split][self._rows(index)].float().numpy()
        return np.ascontiguousarray(np.moveaxis(part, 1, 0))

    def frames(self, split: str, index: int) -> np.ndarray:
        """Frames of a segment, uint8 (n, F, H, W, 3)."""
        rows = self._clips[split][self._rows(index)]
        result = np.empty((self.n_scans, self.num_frames, self.size, self.size, 3), dtype=np.uint8)
        for start in range(0, self.n_scans, _BLOCK_SCANS):
            part = np.moveaxis(rows[start : start + _BLOCK_SCANS].float().numpy(), 2, -1)
            if not (np.isfinite(part).all() and part.min() >= -1e-3 and part.max() <= 1 + 1e-3):
                raise DataError(
                    f"expected values from 0 to 1 in GT_{split}… of {self._folder}, found others in segment {index + 1}"
                )
            result[start : start + _BLOCK_SCANS] = np.rint(np.clip(part, 0, 1) * 255)
        return result

    def captions(self, split: str, index: int) -> list[list[str]]:
        """Captions of the frames of a segment, n lists of F."""
        return self._text[split][self._rows(index)]

    def notes(self) -> dict[str, Any]:
        """Further notes for the provenance."""
        return {"segments": f"consecutive rows, {self.n_scans} a film, in the order of the tensors"}


PublishedFolder = MindVideoFolder | NeuroClipsFolder


def _checked(rows: list[list[str]], where: str) -> list[list[str]]:
    for number, row in enumerate(rows):
        if not all(row):
            raise DataError(f"expected a caption for every frame in {where}, found an empty one in scan {number}")
    return rows
