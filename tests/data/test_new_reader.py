"""A new reader is one file and one line in the table: on a copy of the package, its settings become options and recipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import mindvideo
from mindvideo.atlas import area_of
from mindvideo.data.store import Store
from mindvideo.data.video import write_video

READER = '''
"""Toy recordings: a film NAME.mp4 beside its scans NAME.npy, (n, V); the last film by name is the test."""

import numpy as np
from pydantic import Field

from mindvideo.config import Section
from mindvideo.data.segments import Run, Segment, Source


class Settings(Section):
    """What only toys have."""

    gain: float = Field(1.0, gt=0, description="what scans are multiplied with")
    vertices: tuple[int, ...] = Field((), description="cortical position of each column")


def discover(raw, data):
    vertex, films = np.array(data.own.vertices), sorted(raw.glob("*.mp4"))

    def reader(scans):
        return lambda vertex, wanted: (data.own.gain * scans[:, np.searchsorted(vertex, wanted)]).astype(np.float32)

    segments = []
    for film in films:
        scans = np.load(film.with_suffix(".npy"))
        run = Run(film.stem, film.with_suffix(".npy"), 0, reader(scans))
        segments.append(Segment(film.stem, "test" if film == films[-1] else "train", film, len(scans), (run,)))
    return Source(raw, "toy", tuple(segments), vertex)
'''


def test_a_toy_reader(tmp_path):
    package = tmp_path / "copy" / "mindvideo"
    origin = Path(mindvideo.__file__).parent
    shutil.copytree(origin, package, ignore=shutil.ignore_patterns("kit", "__pycache__"))
    (package / "kit").symlink_to(origin / "kit")
    (package / "data" / "readers" / "toy.py").write_text(READER)
    table = package / "sources.py"
    line = '    "toy": Reader("mindvideo.data.readers.toy", "toy recordings"),\n'
    table.write_text(table.read_text().replace("READERS = {\n", "READERS = {\n" + line))

    rng, raw = np.random.default_rng(0), tmp_path / "raw"
    raw.mkdir()
    vertex = np.sort(area_of("V1"))[:7]
    scans = {name: rng.standard_normal((5, 7)).astype(np.float32) for name in ("a", "b")}
    for name, values in scans.items():
        np.save(raw / f"{name}.npy", values)
        write_video(raw / f"{name}.mp4", rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8), 10, 32)
    options = [
        "--gain",
        "2.5",
        "--set",
        f"data.toy.vertices={vertex.tolist()}",
        "--selection",
        "all",
        "--captions",
        "none",
    ]
    command = [sys.executable, "-m", "mindvideo.cli", "prepare", "toy", str(raw), "--out", str(tmp_path / "store")]
    result = subprocess.run(
        [*command, *options, "--size", "16", "--validation-segments", "0"],
        env={**os.environ, "PYTHONPATH": str(package.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    store = Store.open(tmp_path / "store")
    assert store.splits == {"train": ["a"], "validation": [], "test": ["b"]} and store.n_voxels == 7
    for name, values in scans.items():
        np.testing.assert_allclose(
            store.repeats(name)[0], 2.5 * values[:, np.searchsorted(vertex, store.vertex)], rtol=1e-6
        )
