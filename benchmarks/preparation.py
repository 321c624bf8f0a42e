"""Preparing recordings of true width against only reading them, and against the same written plainly, in one run.

Run with ``python benchmarks/preparation.py [--segments 3] [--folder FOLDER]``. It writes recordings in the layout of
Wen 2018 (245 volumes x 91,282 grayordinates, two runs a training segment) into a temporary folder, or uses those in
FOLDER, and prints CPU seconds (which hold on a busy machine), wall seconds, ratios and peak memory. Frames and captions
are counted apart: films are small, captions come from a file.

Measured once on 10 runs (901 MB, 6,016 voxels kept) in the page cache of a two-core machine that other work was using, in
CPU seconds: reading into one small buffer 0.16, reading whole files 0.47, preparing 3.92 of which films 0.67, plainly
written 12.31; values equal to 4.8e-7; peak memory 0.32 GB against 1.83 GB. So without films preparing takes 6.9 times as
long as reading whole files, where under 3 was wanted; part of it is spent once per process, however many runs there are.
Measured alone, a pair of runs takes 0.21 s to read, hash and correlate, and 6,000 voxels of a run 0.02 s to read again and
standardise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import stats

from mindvideo.atlas import N_CORTEX
from mindvideo.config import Data
from mindvideo.data import preparation, readers
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.pool import open_pool
from mindvideo.data.store import Store
from mindvideo.data.video import write_video

N_SCANS, FRAME_RATE, PIXELS = 240, 3, 32
VOLUMES = {"seg": 245, "test": 246}
BUFFER_BYTES = 2**20
N_VOXELS = 6016
"""As many as the paper keeps of subject 1; a few made-up segments are too few for its own rule."""


def generate(root: Path, n_segments: int) -> None:
    """Recordings, films and captions of some training segments and one test segment."""
    rng = np.random.default_rng(0)
    (root / "stimuli").mkdir(parents=True)
    strength = np.where(np.arange(N_CORTEX) % 10 == 0, 2.0, 0.0).astype(np.float32)
    for name in [*(f"seg{number}" for number in range(1, n_segments + 1)), "test1"]:
        frames = (np.full((PIXELS, PIXELS, 3), i // 60 * 37 % 250, np.uint8) for i in range(2 * N_SCANS * FRAME_RATE))
        write_video(root / "stimuli" / f"{name}.mp4", frames, FRAME_RATE, PIXELS)
        n_volumes = VOLUMES[name.rstrip("0123456789")]
        shared = rng.standard_normal((n_volumes, N_CORTEX), dtype=np.float32) * strength
        drift = 300 * np.linspace(-1, 1, n_volumes, dtype=np.float32)[:, None] ** 3
        for run in (1, 2):
            path = recording(root, name, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.standard_normal(shared.shape, dtype=np.float32)
            subcortex = rng.standard_normal((n_volumes, sum(SUBCORTEX.values())), dtype=np.float32)
            write_cortex(path, 9000 + drift + 100 * (shared + noise), np.arange(N_CORTEX), 2.0, 8000 + 90 * subcortex)
    captions = {path.stem: ["a still"] * N_SCANS for path in (root / "stimuli").iterdir()}
    (root / "captions.json").write_text(json.dumps(captions))


def recording(root: Path, name: str, run: int) -> Path:
    return root / "subject1" / "fmri" / name / "cifti" / f"{name}_{run}_Atlas.dtseries.nii"


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """CPU and wall seconds and peak memory of some work, done in a process of its own."""

    def child(results: Any) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        results.send({"cpu": cpu, "wall": wall, "memory": memory, "result": result})

    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(send,))
    process.start()
    send.close()
    found: dict[str, Any] = receive.recv()
    process.join()
    return found


def read_blocks(files: list[Path]) -> None:
    """The least a program can do: every byte once, into one small buffer."""
    buffer = bytearray(BUFFER_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_whole(files: list[Path]) -> None:
    """Every file into memory, one after the other."""
    for path in files:
        path.read_bytes()


def prepare(root: Path, out: Path, workers: int) -> float:
    """The real thing; returns the CPU seconds spent on films, which are counted apart."""
    spent = [0.0]

    def timed(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(task: Any) -> Any:
            start = time.thread_time()
            result = function(task)
            spent[0] += time.thread_time() - start
            return result

        return call

    for name in ("take_film", "check_film"):
        setattr(preparation, name, timed(getattr(preparation, name)))
    data = Data(captions=str(root / "captions.json"), size=PIXELS, selection="top_k", k=N_VOXELS)
    with open_pool(workers) as pool:
        readers.prepare(root, out, data, pool=pool)
    return spent[0]


def prepare_plainly(root: Path, out: Path, segments: list[str]) -> None:
    """The preparation (docs/method.md, Recordings) with NumPy and SciPy, a line a step; validation segments count as training."""

    def standardised(name: str, run: int) -> np.ndarray:
        series = nibabel.load(recording(root, name, run)).get_fdata()[:, :N_CORTEX]
        series = series[1:-4] if len(series) == VOLUMES["seg"] else series[2:-4]
        time_axis = np.linspace(-1, 1, len(series))
        trend = np.polynomial.polynomial.polyfit(time_axis, series, 4)
        series = series - np.polynomial.polynomial.polyval(time_axis, trend).T
        return (series - series.mean(axis=0)) / series.std(axis=0, ddof=1)

    runs = {name: [standardised(name, 1), standardised(name, 2)] for name in segments}
    z = []
    for name in segments:
        if name.startswith("seg"):
            r = (runs[name][0] * runs[name][1]).sum(axis=0) / (N_SCANS - 1)
            z.append(np.arctanh(r))
    p = stats.ttest_1samp(z, 0, axis=0, alternative="greater").pvalue
    chosen = np.sort(np.argsort(p, kind="stable")[:N_VOXELS])
    means = {name: np.mean([run[:, chosen] for run in runs[name]], axis=0).astype(np.float32) for name in segments}
    np.savez(out, vertex=chosen, **means)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.folder or Path(scratch) / "raw"
        if not root.is_dir():
            generate(root, arguments.segments)
        segments = sorted(path.stem for path in (root / "stimuli").iterdir())
        files = sorted((root / "subject1").rglob("*.nii"))
        size = sum(path.stat().st_size for path in files)
        print(f"{len(segments)} segments, {len(files)} runs, {size / 1e6:,.0f} MB")
        rows = {
            "read, one small buffer": measured(lambda: read_blocks(files)),
            "read, whole files": measured(lambda: read_whole(files)),
            "prepare, 1 worker": measured(lambda: prepare(root, Path(scratch) / "one", 1)),
            "prepare, 2 workers": measured(lambda: prepare(root, Path(scratch) / "two", 2)),
            "the same, written plainly": measured(lambda: prepare_plainly(root, Path(scratch) / "plain.npz", segments)),
        }
        for name, row in rows.items():
            films = f", of which films {row['result']:.2f} s" if row["result"] is not None else ""
            print(f"{name}: {row['cpu']:.2f} s CPU{films}, {row['wall']:.2f} s wall, {row['memory'] / 1e9:.2f} GB peak")
        ours = rows["prepare, 1 worker"]
        work = ours["cpu"] - ours["result"]
        for name in ("read, one small buffer", "read, whole files", "the same, written plainly"):
            print(f"preparing without films / {name}: {work / rows[name]['cpu']:.2f} (CPU seconds)")
        store = Store.open(Path(scratch) / "one")
        with np.load(Path(scratch) / "plain.npz") as plain:
            order = np.argsort(store.vertex)
            assert np.array_equal(store.vertex[order], plain["vertex"])
            gap = max(float(np.abs(store.fmri(name)[:, order] - plain[name]).max()) for name in segments)
        print(f"{store.n_voxels} voxels, the same in both; largest difference of a value {gap:.1e}")


if __name__ == "__main__":
    main()
