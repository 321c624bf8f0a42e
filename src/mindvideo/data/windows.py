"""Windows of scans, batches of different scenes, blocks for statistics, near-duplicates.

Shapes: N windows of a split, B batch, W scans per window, V voxels, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mindvideo.data.store import Store
from mindvideo.data.video import read_frames
from mindvideo.errors import DataError, SettingError

_THUMBNAIL = 8
_FLAT = 1.0
_FRAMES_PER_SCAN = 6
_READ = 32
"""Windows read at once where all of them are averaged."""


def spread_evenly(n: int, most: int) -> np.ndarray:
    """Indices of at most so many of ``n`` things, from the first to the last."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


def stack_scans(parts: Sequence[tuple[Store, str]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scans of people's splits, read one recording at a time into the place where they stay.

    Returns
    -------
    ndarray, float32 (N, most V)
        The parts below one another, zeros past a person's own voxels.
    list of ndarray, float32 (n, V)
        Each part of it, without these zeros.
    """
    counts = [sum(map(store.n_scans, _list_recordings(store, split))) for store, split in parts]
    stacked = np.zeros((sum(counts), max(store.n_voxels for store, _ in parts)), np.float32)
    own = [
        rows[:, : store.n_voxels]
        for rows, (store, _) in zip(np.split(stacked, np.cumsum(counts)[:-1]), parts, strict=True)
    ]
    for rows, (store, split) in zip(own, parts, strict=True):
        at = 0
        for name in store.segments(split):
            for run in store.repeats(name) if _has_runs(store, split) else [store.fmri(name)]:
                rows[at : at + len(run)] = run
                at += len(run)
    return stacked, own


def _list_recordings(store: Store, split: str) -> list[str]:
    """Segments of a split, each once, or once a run where training runs are kept apart."""
    names = store.segments(split)
    return [name for name in names for _ in range(store.n_repeats(name))] if _has_runs(store, split) else names


def _has_runs(store: Store, split: str) -> bool:
    return split == "train" and store.keeps_repeats_apart


class Windows:
    """A window from every scan of a split, in order of people, segments and scans.

    In a store prepared with ``repeats: separate``, training windows are of single runs
    instead of their average. Window i is the scans t, t+1, …, t+W−1 of its segment,
    whose last scan repeats past its end (docs/method.md, Recordings).

    Parameters
    ----------
    store : Store or sequence of Store
        One, or one for each of several people who saw the same films.
    split : str
        ``train``, ``validation`` or ``test``.
    window : int
        Scans per window W.

    Attributes
    ----------
    person : ndarray, int64 (N,)
        Index of the person.
    film : ndarray, int64 (N,)
        The first person's window at the same moment: the row of the film's features.
    voxels : list of int
        Number of voxels of each person; zeros follow them in a window's scans.
    segment : ndarray of str (N,)
    scan : ndarray, int64 (N,)
        t, counted inside the segment.
    scene : ndarray, int32 (N,)
        Scene of the middle frame of scan t.

    Raises
    ------
    DataError
        For an unknown or empty split.
    """

    def __init__(self, store: Store | Sequence[Store], split: str, window: int) -> None:
        self.stores = list(store) if isinstance(store, Sequence) else [store]
        self.store, self.split, self.window = self.stores[0], split, window
        store = self.store
        if not store.segments(split):
            raise DataError(
                f"expected segments in split '{split}' of {store.path}, found none; prepare with more segments"
            )
        theirs = [(one, _list_recordings(one, split)) for one in self.stores]
        names = [name for _, own in theirs for name in own]
        lengths = np.array([one.n_scans(name) for one, own in theirs for name in own])
        self.voxels = [one.n_voxels for one in self.stores]
        self.person: np.ndarray = np.repeat(np.arange(len(theirs)).repeat([len(own) for _, own in theirs]), lengths)
        self._end = np.repeat(np.cumsum(lengths), lengths) - 1
        self._segment_number = np.repeat(np.arange(len(names)), lengths)
        self.segment: np.ndarray = np.array(names)[self._segment_number]
        self.scan: np.ndarray = np.concatenate([np.arange(length) for length in lengths])
        starts = dict(zip(reversed(names), reversed((np.cumsum(lengths) - lengths).tolist()), strict=True))
        same = np.array([starts[name] for name in names])[self._segment_number] + self.scan
        self.film: np.ndarray = np.where(self.person == 0, np.arange(len(same)), same)
        scenes = np.concatenate([store.scene(name) for name in names])
        self.scene: np.ndarray = scenes[:, store.num_frames // 2]
        self._last_scene = scenes[:, -1]
        self._scenes = [set(row) for row in scenes.tolist()]
        self._names = names

    def __len__(self) -> int:
        return len(self.scan)

    @cached_property
    def captions(self) -> list[str]:
        """One for each window (N); DataError where the store has none."""
        return [caption for name in self._names for caption in self.store.captions(name)]

    @property
    def n_voxels(self) -> int:
        """Number of voxels V, of the person who has most."""
        return max(self.voxels)

    @cached_property
    def _stacked(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Read when scans are first asked for: frames and captions need none."""
        return stack_scans([(one, self.split) for one in self.stores])

    @property
    def scans(self) -> list[np.ndarray]:
        """Each person's scans, float32 (n, V), in order of segments; not to be written to."""
        return self._stacked[1]

    def fmri(self, index: np.ndarray, voxels: slice = slice(None)) -> np.ndarray:
        """The scans of the given windows, float32 (B, W, V), or some voxels of them."""
        index = np.asarray(index)
        rows = np.minimum(index[:, None] + np.arange(self.window), self._end[index][:, None])
        return self._stacked[0][rows, voxels]

    def mean_fmri(self, person: int = 0) -> np.ndarray:
        """Mean window (W, V) float32 of a person."""
        theirs = np.flatnonzero(self.person == person)
        starts = range(0, len(theirs), _READ)
        parts = [self.fmri(theirs[at : at + _READ]).sum(axis=0, dtype=np.float64) for at in starts]
        return (np.sum(parts, axis=0) / len(theirs)).astype(np.float32)

    def frames(self, index: np.ndarray) -> np.ndarray:
        """Frames shown during the first scan of the given windows, uint8 (B, F, H, W, 3)."""
        return self._by_segment(index, self.store.frames_at, self.store.num_frames, self.store.size)

    def _by_segment(
        self, index: np.ndarray, read: Callable[[str, np.ndarray], np.ndarray], num_frames: int, size: int
    ) -> np.ndarray:
        index = np.asarray(index)
        frames = np.empty((len(index), num_frames, size, size, 3), dtype=np.uint8)
        names = self.segment[index]
        for name in dict.fromkeys(names.tolist()):
            chosen = np.flatnonzero(names == name)
            frames[chosen] = read(name, self.scan[index[chosen]])
        return frames

    def frames_at_rate(self, index: np.ndarray, num_frames: int, size: int | None = None) -> np.ndarray:
        """`frames` at another rate, read from the films: uint8 (B, num_frames, H, W, 3).

        Frame j of a window shows the film at scan · TR + j · TR / num_frames.

        Parameters
        ----------
        index : ndarray, int (B,)
        num_frames : int
            Frames per TR.
        size : int, optional
            Height and width; the store's by default.

        Raises
        ------
        DataError
            If the store was made from arrays, or its films were moved or changed.
        """
        side = size or self.store.size

        def read(name: str, scan: np.ndarray) -> np.ndarray:
            film = self.store.film(name)
            times = film["start_s"] + (scan[:, None] + np.arange(num_frames) / num_frames) * self.store.tr_s
            frames = read_frames(film["path"], times.ravel(), side, film["fit"])
            return frames.reshape(len(scan), num_frames, side, side, 3)

        return self._by_segment(index, read, num_frames, side)

    def sample_batch(self, rng: np.random.Generator, batch_size: int) -> np.ndarray:
        """Random windows of which no two share a scene (docs/method.md, The encoder).

        What two people see at one moment of a film is the same scene.

        Returns
        -------
        ndarray, int64 (B,)
            The first windows of a random order whose scenes are not yet in the batch.

        Raises
        ------
        DataError
            If the split has fewer such windows than the batch.
        """
        order = rng.permutation(len(self))
        batch = self._without_repeats(order, batch_size)
        if len(batch) < batch_size:  # an unlucky order; sorted by their last scene, as many fit as can
            most = self._as_many(order)
            if len(most) < batch_size:
                raise DataError(
                    f"expected at least {batch_size} windows without a scene in common in split '{self.split}' of "
                    f"{self.store.path} for a batch, found {len(most)}; lower batch_size or add segments"
                )
            batch = rng.permutation(most)[:batch_size]
        return batch

    def most_apart(self) -> int:
        """How many windows there are of which no two show the same scene."""
        return len(self._as_many(np.arange(len(self))))

    def _as_many(self, order: np.ndarray) -> np.ndarray:
        return self._without_repeats(order[np.argsort(self._last_scene[order], kind="stable")], len(self))

    def _without_repeats(self, order: np.ndarray, most: int) -> np.ndarray:
        """The first windows of an order, at most so many, that show no scene of one before."""
        seen: set[int] = set()
        chosen: list[int] = []
        for index in order.tolist():
            if seen.isdisjoint(self._scenes[index]):
                seen |= self._scenes[index]
                chosen.append(index)
                if len(chosen) == most:
                    break
        return np.array(chosen, dtype=np.int64)

    def blocks(self, block_scans: int) -> np.ndarray:
        """Block of each window, int64 (N,), see `block_numbers`."""
        return block_numbers(self._segment_number, self.scan, block_scans)


def block_numbers(segment: np.ndarray, scan: np.ndarray, block_scans: int) -> np.ndarray:
    """Index of the block of consecutive scans of a segment that each window belongs to.

    Parameters
    ----------
    segment : ndarray (n,)
        Name or index.
    scan : ndarray, int (n,)
        First scan of each window inside its segment.
    block_scans : int
        Scans per block.

    Returns
    -------
    ndarray, int64 (n,)
        0, 1, … in order of segment and scan; the last block of a segment may be shorter.

    Raises
    ------
    SettingError
        For blocks shorter than one scan.
    """
    if block_scans < 1:
        raise SettingError(f"expected blocks of at least one scan, found {block_scans}")
    _, segment_index = np.unique(np.asarray(segment), return_inverse=True)
    place = np.asarray(scan, dtype=np.int64) // block_scans
    _, block = np.unique(segment_index * (int(place.max(initial=0)) + 1) + place, return_inverse=True)
    return block.astype(np.int64)


@dataclass(frozen=True)
class NearDuplicate:
    """A test scan that looks like a training scan; ``correlation`` is of the most alike frames."""

    test_segment: str
    test_scan: int
    train_segment: str
    train_scan: int
    correlation: float


def near_duplicates(store: Store, threshold: float = 0.98) -> list[NearDuplicate]:
    """Test scans with a frame nearly identical to a training or validation frame.

    Parameters
    ----------
    threshold : float
        Least correlation between 8 x 8 grey thumbnails; frames of one grey are never counted.

    Returns
    -------
    list of NearDuplicate
        For each such test scan the most alike training scan, in order of the test scans.
    """
    test = set(store.splits["test"])
    train_names = [name for name in store.order if name not in test]
    test_names = [name for name in store.order if name in test]
    trains = {name: _thumbnails(store, name) for name in train_names}
    found: list[NearDuplicate] = []
    for test_name in test_names:
        thumbnails = _thumbnails(store, test_name)
        n_scans, n_frames, n_pixels = thumbnails.shape
        best = np.full(n_scans, -np.inf)
        where: list[tuple[str, int]] = [("", -1)] * n_scans
        for train_name, candidates in trains.items():
            similarity = thumbnails.reshape(-1, n_pixels) @ candidates.reshape(-1, n_pixels).T
            by_scan = similarity.reshape(n_scans, n_frames, len(candidates), -1).max(axis=(1, 3))
            nearest = by_scan.argmax(axis=1)
            for scan in np.flatnonzero(by_scan.max(axis=1) > best):
                best[scan] = by_scan[scan, nearest[scan]]
                where[scan] = (train_name, int(nearest[scan]))
        found += [
            NearDuplicate(test_name, int(scan), *where[scan], min(1.0, float(best[scan])))
            for scan in np.flatnonzero(best >= threshold)
        ]
    return found


def _thumbnails(store: Store, segment: str, block_scans: int = 32) -> np.ndarray:
    """Standardised grey thumbnails, float32 (n, frames, 64); their inner product is Pearson's r.

    Of many frames a scan (30 FPS) about six are looked at.
    Frames of one grey become zeros, which correlate with nothing.
    """
    edges = np.linspace(0, store.size, min(_THUMBNAIL, store.size) + 1).astype(int)[:-1]
    stride = max(1, store.num_frames // _FRAMES_PER_SCAN)
    area = np.diff(np.append(edges, store.size))
    rows = []
    for start in range(0, store.n_scans(segment), block_scans):
        grey = store.frames(segment, start, start + block_scans)[:, ::stride].mean(axis=-1, dtype=np.float32)
        small = np.add.reduceat(np.add.reduceat(grey, edges, axis=2), edges, axis=3) / np.outer(area, area)
        flat = small.reshape(*small.shape[:2], -1)
        flat = flat - flat.mean(axis=-1, keepdims=True)
        is_flat = flat.std(axis=-1, keepdims=True) < _FLAT
        norm = np.linalg.norm(flat, axis=-1, keepdims=True)
        rows.append(np.where(is_flat, 0.0, flat / np.where(is_flat, 1.0, norm)).astype(np.float32))
    return np.concatenate(rows)
