"""Damaged files at 200 places each: one clear sentence or a correct result, never a hang, a traceback or executed code.

Every input is cut off at 100 places and has a bit flipped at 100 others, and goes through the functions that `prepare`,
`inspect` and training call. Where the format has checksums a result must equal the intact one; elsewhere a flipped value
cannot be told from a true one, and the result must be whole, finite and of the right shape.
"""

from __future__ import annotations

import csv
import faulthandler
import gzip
import json
import math
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType

import av
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "data"))
from big_endian import to_big_endian
from small_store import HEADER, fill, make_parts, make_vertex

from mindvideo.config import Data
from mindvideo.data.arrays import read_npy, read_pt
from mindvideo.data.bids import read_events, read_positive, read_sidecar
from mindvideo.data.captions import caption_frames, read_captions
from mindvideo.data.cifti import write_cortex
from mindvideo.data.denoising import read_confounds
from mindvideo.data.measuring import RunTask, standardise_run
from mindvideo.data.readers import discover
from mindvideo.data.readers.hcp import BrainSegments, prepare_hcp, read_npz_windows
from mindvideo.data.readers.published import _check_values
from mindvideo.data.segments import Run
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store
from mindvideo.data.video import probe, read_film, write_video
from mindvideo.data.windows import Windows
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, MindVideoError

HANG_S = 30
MOST_MEMORY_KB = 1_000_000


class Hang(BaseException):
    """No `except Exception` of a reader swallows it."""


@contextmanager
def watchdog() -> Iterator[None]:
    """Raise after `HANG_S`; where a library does not come back to Python, end the process with its stack."""

    def bark(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no answer within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    faulthandler.dump_traceback_later(3 * HANG_S, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Format:
    """How to make the files of an input, which of them to damage, how they are read, and what a result must satisfy.

    ``check`` is called with the result, that of the intact files, and whether a file was cut off.
    ``refuses`` are the least numbers of cuts and of flips that must be errors.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    check: Callable[[object, object, bool], None]
    refuses: tuple[int, int]


# CIFTI -----------------------------------------------------------------------------------------------------------------

VERTEX = np.r_[np.arange(0, 40, 5), 30000 + np.arange(9)].astype(np.int32)


def _make_cifti(folder: Path) -> list[Path]:
    data = 100 + np.random.default_rng(0).standard_normal((12, len(VERTEX)))
    write_cortex(folder / "run.dtseries.nii", data, VERTEX, 2.0)
    return [folder / "run.dtseries.nii"]


def _make_cifti_big_endian(folder: Path) -> list[Path]:
    [path] = _make_cifti(folder)
    path.write_bytes(to_big_endian(path.read_bytes()))
    return [path]


def _make_cifti_gz(folder: Path) -> list[Path]:
    [path] = _make_cifti(folder)
    zipped = path.with_name(path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return [zipped]


def _read_cifti(folder: Path) -> object:
    """As `prepare wen2018` and `prepare hcp` read: the whole recording, and chosen vertices straight from the file."""
    [path] = folder.glob("run.*")
    recording = read_cortex(path)
    run = Run("run", path, 1)
    return recording, standardise_run(RunTask(run, 10, recording.vertex, recording.vertex[::2]))


def _check_cifti(result: object, truth: object, is_cut: bool) -> None:
    recording, standardised = result
    assert not is_cut
    assert recording.data.shape == (12, len(recording.vertex)) == truth[0].data.shape
    assert (np.diff(recording.vertex) > 0).all() and recording.vertex[0] >= 0 and recording.vertex[-1] < 59412
    assert 0 < recording.tr_s < math.inf
    np.testing.assert_allclose(standardised.std(axis=0, ddof=1), 1, atol=1e-5)


def _check_cifti_gz(result: object, truth: object, is_cut: bool) -> None:
    assert not is_cut
    np.testing.assert_array_equal(result[0].data, truth[0].data)
    np.testing.assert_array_equal(result[0].vertex, truth[0].vertex)
    np.testing.assert_array_equal(result[1], truth[1])


# Films -----------------------------------------------------------------------------------------------------------------

TIMES = np.arange(8) / 5


def _make_film(suffix: str) -> Callable[[Path], list[Path]]:
    """24 frames of two shots; H.264, and VP8 where the container wants it."""

    def make(folder: Path) -> list[Path]:
        rng = np.random.default_rng(1)
        shots = [np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(2)]
        path = folder / f"film.{suffix}"
        if suffix in ("mp4", "mkv", "mov"):
            write_video(path, [shots[i // 12] for i in range(24)], 15, 32)
            return [path]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libvpx" if suffix == "webm" else "mpeg4", rate=15)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for i in range(24):
                frame = av.VideoFrame.from_ndarray(shots[i // 12], format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 15)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return [path]

    return make


def _read_film(folder: Path) -> object:
    [path] = folder.glob("film.*")
    return probe(path), read_film(path, TIMES, 16, cut_threshold=27.0)


def _check_film(result: object, truth: object, is_cut: bool) -> None:
    info, film = result
    if is_cut:  # behind the last frame
        assert abs(info.duration_s - truth[0].duration_s) < 0.14 and film.cuts_s == truth[1].cuts_s
        np.testing.assert_array_equal(film.frames, truth[1].frames)
    assert film.frames.shape == truth[1].frames.shape and film.frames.dtype == np.uint8
    assert 0 < info.duration_s < math.inf and 0 < info.fps < math.inf and min(info.width, info.height) > 0
    assert film.cuts_s == sorted(film.cuts_s) and all(0 < cut_s < math.inf for cut_s in film.cuts_s)


# NumPy archives and arrays, torch files ----------------------------------------------------------------------------------


def _make_npz(folder: Path) -> list[Path]:
    rng = np.random.default_rng(2)
    np.savez(folder / "HCP_visual_voxel.npz", V1=rng.random((9, 3)), V2=rng.random((9, 2), np.float32))
    return [folder / "HCP_visual_voxel.npz"]


def _make_npz_deflated(folder: Path) -> list[Path]:
    [path] = _make_npz(folder)
    with np.load(path) as arrays:
        np.savez_compressed(path, **arrays)
    return [path]


def _read_npz(folder: Path) -> object:
    return read_npz_windows(folder / "HCP_visual_voxel.npz", ("V1", "V2"), 1.44)


def _check_npz(result: object, truth: object, is_cut: bool) -> None:
    assert not is_cut
    np.testing.assert_array_equal(result, truth)


def _published_arrays() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return {
        split: {
            "fmri": rng.standard_normal((n, 4, 5)).astype(np.float32),
            "video": rng.integers(0, 256, (n, 4, 6, 2, 2, 3)).astype(np.uint8),
            "text": np.array([[[f"a {i} b"] * 6 for i in range(4)]] * n),
        }
        for split, n in (("train", 2), ("test", 1))
    }


def _make_mindvideo(folder: Path) -> list[Path]:
    for split, arrays in _published_arrays().items():
        np.save(folder / f"fmri_{split}_subject1.npy", arrays["fmri"])
        np.save(folder / f"video_{split}_2_3hz.npy", arrays["video"])
        np.save(folder / f"text_{split}_2_3hz.npy", arrays["text"])
    return sorted(folder.glob("*.npy"))


def _make_neuroclips(folder: Path) -> list[Path]:
    for split, arrays in _published_arrays().items():
        n = arrays["fmri"].shape[0] * 4
        fmri = torch.from_numpy(arrays["fmri"]).reshape(n, 1, 5).repeat(1, 2, 1)
        torch.save(fmri, folder / f"subj01_{split}_fmri.pt")
        torch.save(torch.from_numpy(arrays["video"]).reshape(n, 6, 2, 2, 3).movedim(-1, 2) / 255, folder / f"GT_{split}_3fps.pt")  # fmt: skip
        torch.save(arrays["text"][..., 0].ravel().tolist(), folder / f"GT_{split}_caption.pt")
    return sorted(folder.glob("*.pt"))


def _read_published(folder: Path) -> object:
    data = Data(source="published", captions="published", published={"segment_scans": 4})
    source = discover(folder, data)
    names = {split: source.segment_names(split) for split in ("train", "test")}
    _check_values(source, names, data)
    return [
        (source.repeats(split, i), source.frames(split, i), source.captions(split, i))
        for split in names
        for i in range(len(names[split]))
    ]


def _check_published(result: object, truth: object, is_cut: bool) -> None:
    assert len(result) == len(truth)
    for (fmri, frames, captions), (true_fmri, true_frames, true_captions) in zip(result, truth, strict=True):
        assert fmri.shape == true_fmri.shape and frames.shape == true_frames.shape and frames.dtype == np.uint8
        assert [len(row) for row in captions] == [len(row) for row in true_captions] and all(map(all, captions))
        assert np.isfinite(fmri).all()
    assert not is_cut


# Text ------------------------------------------------------------------------------------------------------------------


def _make_events(folder: Path) -> list[Path]:
    rows = ["onset\tduration\ttrial_type\tstim_file"]
    rows += [f"{12.5 * i:g}\t{'n/a' if i % 3 == 0 else 10}\tfilm\tfilms/part{i}.mp4" for i in range(9)]
    (folder / "events.tsv").write_text("\n".join([*rows, "120\t2\trest\tn/a", ""]))
    return [folder / "events.tsv"]


def _check_events(result: object, truth: object, is_cut: bool) -> None:
    assert [event.onset_s for event in result] == sorted(event.onset_s for event in result)
    for event in result:
        assert math.isfinite(event.onset_s) and event.stimulus
        assert event.duration_s is None or 0 < event.duration_s < math.inf
    if is_cut:  # whole lines, the last of them perhaps with a shorter name of its film
        for found, wanted in zip(result[:-1], truth, strict=False):
            assert found == wanted


def _make_confounds(folder: Path) -> list[Path]:
    rng = np.random.default_rng(4)
    rows = ["trans_x\ttrans_y\tframewise_displacement\tother"]
    for i in range(9):
        rows.append("\t".join(["n/a" if i == 0 and j == 2 else f"{x:.4f}" for j, x in enumerate(rng.random(4))]))
    (folder / "confounds.tsv").write_text("\n".join(rows) + "\n")
    return [folder / "confounds.tsv"]


def _read_confounds(folder: Path) -> object:
    return read_confounds(folder / "confounds.tsv", ("trans_*", "framewise_displacement"), 9)


def _check_confounds(result: object, truth: object, is_cut: bool) -> None:
    names, values = result.names, result.values
    assert values.shape == (9, len(names)) and "framewise_displacement" in names
    assert not np.isinf(values).any() and not (np.isnan(values[1:]) & ~np.isnan(values[:-1])).any()  # NaN at first only
    if is_cut:  # in the last, unused column
        np.testing.assert_array_equal(values, truth.values)


def _make_sidecar(folder: Path) -> list[Path]:
    content = {"TaskName": "movie", "RepetitionTime": 1.5, "SliceTimingCorrected": True, "StartTime": 0.75}
    (folder / "bold.json").write_text(json.dumps({**content, "Sources": [f"bids:raw:sub-0{i}" for i in range(9)]}))
    return [folder / "bold.json"]


def _read_sidecar(folder: Path) -> object:
    path = folder / "bold.json"
    return read_positive(read_sidecar(path), "RepetitionTime", path)


def _check_sidecar(result: object, truth: object, is_cut: bool) -> None:
    assert not is_cut and 0 < result < math.inf


CAPTION_TIMES = {name: np.arange(n)[:, None] * 2.0 + np.arange(3) / 1.5 for name, n in (("seg1", 4), ("test1", 3))}


def _make_captions_csv(folder: Path) -> list[Path]:
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["segment", "scan", "caption"])
        writer.writerows((name, i, f'a {name}, "number" {i}') for name, times in CAPTION_TIMES.items() for i in range(len(times)))  # fmt: skip
    return [folder / "captions.csv"]


def _make_captions_json(folder: Path) -> list[Path]:
    rows = {name: [f"{name} é {i}" for i in range(len(times) - 1)] for name, times in CAPTION_TIMES.items()}
    (folder / "captions.json").write_text(json.dumps({name: [*own, ["x", "y", "z"]] for name, own in rows.items()}))
    return [folder / "captions.json"]


def _read_captions(folder: Path) -> object:
    [path] = folder.glob("captions.*")
    return read_captions(path, CAPTION_TIMES)


def _check_captions(result: object, truth: object, is_cut: bool) -> None:
    assert list(result) == list(truth)
    for name, times in CAPTION_TIMES.items():
        assert np.shape(result[name]) == times.shape
        assert all(isinstance(caption, str) and caption.strip() for row in result[name] for caption in row)
    if is_cut:  # in the last caption of a csv file
        assert all(row == wanted for name in truth for row, wanted in zip(result[name][:-1], truth[name], strict=False))


FRAMES = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)


def _captioner(frames: np.ndarray) -> list[str]:
    return [f"level {frame[0, 0, 0]}" for frame in frames]


def _make_cache(folder: Path) -> list[Path]:
    caption_frames(_captioner, FRAMES, folder / "cache.jsonl", batch=2)
    return [folder / "cache.jsonl"]


def _check_cache(result: object, truth: object, is_cut: bool) -> None:
    assert len(result) == 6 and all(isinstance(caption, str) for caption in result)
    assert not is_cut or result == truth


# Stores ----------------------------------------------------------------------------------------------------------------


def _make_store(folder: Path) -> list[Path]:
    with StoreWriter(folder / "store.zarr", vertex=make_vertex(), **HEADER) as writer:
        fill(writer, make_parts())
        writer.add_step("trim", first=1)
        writer.finish()
    root = folder / "store.zarr" / "zarr.json"
    below = sorted(path for path in (folder / "store.zarr").glob("*/*/zarr.json"))
    return [path for other in below[::3] for path in (root, other)]


def _read_store(folder: Path) -> object:
    store = Store.open(folder / "store.zarr")
    summary = store.summary()
    parts = [[read(name) for read in (store.fmri, store.repeats, store.frames, store.scene, store.frame_captions)]
             for name in store.order]  # fmt: skip
    return store, summary, parts, Windows(store, "train", 2)


def _check_store(result: object, truth: object, is_cut: bool) -> None:
    store, _, parts, windows = result
    assert store.order == truth[0].order and len(windows) == len(truth[3])
    np.testing.assert_array_equal(store.vertex, truth[0].vertex)
    for part, true in zip(parts, truth[2], strict=True):
        for found, wanted in zip(part[:4], true[:4], strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        assert np.shape(part[4]) == np.shape(true[4])
        assert not is_cut or part[4] == true[4]


def _make_segments(folder: Path) -> list[Path]:
    (folder / "raw").mkdir()
    _make_npz(folder / "raw")
    prepare_hcp(folder / "raw", folder / "hcp.zarr", 1.44, ("V1", "V2"))
    return sorted((folder / "hcp.zarr").rglob("zarr.json"))


def _read_segments(folder: Path) -> object:
    segments = BrainSegments.open(folder / "hcp.zarr")
    return len(segments), segments.n_voxels, segments.take(np.arange(len(segments)))


def _check_segments(result: object, truth: object, is_cut: bool) -> None:
    assert not is_cut and result[:2] == truth[:2] and result[2].dtype == np.float32
    np.testing.assert_array_equal(result[2], truth[2])


FORMATS = {
    "cifti": Format(_make_cifti, _read_cifti, _check_cifti, (100, 20)),
    "cifti big-endian": Format(_make_cifti_big_endian, _read_cifti, _check_cifti, (100, 20)),
    "cifti.gz": Format(_make_cifti_gz, _read_cifti, _check_cifti_gz, (100, 80)),
    **{
        suffix: Format(_make_film(suffix), _read_film, _check_film, (80, 5))
        for suffix in ("mp4", "mkv", "mov", "avi", "webm")
    },
    "npz": Format(_make_npz, _read_npz, _check_npz, (100, 50)),
    "npz deflated": Format(_make_npz_deflated, _read_npz, _check_npz, (100, 50)),
    "npy": Format(_make_mindvideo, _read_published, _check_published, (100, 5)),
    "pt": Format(_make_neuroclips, _read_published, _check_published, (100, 5)),
    "events.tsv": Format(_make_events, lambda folder: read_events(folder / "events.tsv"), _check_events, (30, 5)),
    "confounds.tsv": Format(_make_confounds, _read_confounds, _check_confounds, (80, 5)),
    "bold.json": Format(_make_sidecar, _read_sidecar, _check_sidecar, (100, 5)),
    "captions.csv": Format(_make_captions_csv, _read_captions, _check_captions, (90, 5)),
    "captions.json": Format(_make_captions_json, _read_captions, _check_captions, (100, 5)),
    "caption cache": Format(
        _make_cache,
        lambda folder: caption_frames(_captioner, FRAMES, folder / "cache.jsonl", batch=2),
        _check_cache,
        (0, 5),
    ),
    "store": Format(_make_store, _read_store, _check_store, (100, 5)),
    "hcp": Format(_make_segments, _read_segments, _check_segments, (100, 5)),
}


def damage(content: bytes, is_cut: bool, rng: np.random.Generator) -> bytes:
    """The file cut off somewhere, or with one bit flipped."""
    place = int(rng.integers(len(content)))
    if is_cut:
        return content[:place]
    return content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_read_right(tmp_path: Path, name: str) -> None:
    case = FORMATS[name]
    paths = case.make(tmp_path)
    truth = case.read(tmp_path)
    intact = {path: path.read_bytes() for path in paths}
    rng = np.random.default_rng(7)
    memory_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = [0, 0]
    for number in range(200):
        path, is_cut = paths[number // 2 % len(paths)], number % 2 == 0
        broken = damage(intact[path], is_cut, rng)
        path.write_bytes(broken)
        try:
            with watchdog():
                result = case.read(tmp_path)
        except MindVideoError as error:
            message = str(error)
            assert message.strip() and "\n" not in message, message
            assert path.name in message or str(tmp_path) in message, message
            refused[number % 2] += 1
        else:
            case.check(result, truth, is_cut)
        path.write_bytes(intact[path])
    assert refused[0] >= case.refuses[0] and refused[1] >= case.refuses[1], refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kb < MOST_MEMORY_KB
    assert isinstance(case.read(tmp_path), type(truth))  # and the intact files still read


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._marker,)


def test_no_file_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    bomb = np.array([[Bomb(marker)]], dtype=object)
    np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "a.npz", V1=bomb, V2=bomb)
    torch.save(Bomb(marker), tmp_path / "a.pt")
    torch.save({"x": [Bomb(marker)]}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(marker)))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb(marker)))
    readers = {"a.npy": read_npy, "raw.npy": read_npy, "a.pt": read_pt, "old.pt": read_pt, "raw.pt": read_pt}
    readers["a.npz"] = lambda path: read_npz_windows(path, ("V1", "V2"), 1.44)
    for name, read in readers.items():
        with watchdog(), pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not marker.exists(), name
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # it would have gone off


def test_the_watchdog_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "HANG_S", 0.05)
    with pytest.raises(Hang, match="no answer"), watchdog():
        while True:
            pass
