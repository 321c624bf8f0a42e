"""Peak memory of ``prepare hcp`` as the number of segments grows tenfold, on recordings of true width.

Run with ``python benchmarks/hcp_memory.py [--segments 6000 60000]``. It writes one published archive's content (V1 to V4,
4,183 voxels, 0.72 s) once and gives it to as many made-up people as the number of segments needs, prepares them, and
prints the peak resident memory of the preparing process, its CPU seconds and the rows. CIFTI runs (1,200 volumes x 91,282 grayordinates) are measured with ``--cifti``.

Measured with ``--volumes 2`` (segments of 2 volumes instead of 11, which changes what is read and not what is kept):
6,000 segments from 15 files 213 MB, which includes opening the result, held in memory up to 512 MB; 60,000 from 150 files
155 MB; 84 MB of both were there before the first file. Not measured: 600,000 segments, CIFTI.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.atlas import N_CORTEX, area_of
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.readers import hcp
from mindvideo.data.readers.hcp import NPZ_TR_S

AREAS = ("V1", "V2", "V3", "V4")
WINDOWS_A_PERSON = 400
CIFTI_VOLUMES = 1200


def write_archive(path: Path, n_windows: int, volumes: int) -> None:
    """An npz of random series, written in blocks so that it may be larger than memory."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in AREAS:
            shape = (n_windows * volumes, len(area_of(name)))
            block = rng.standard_normal((WINDOWS_A_PERSON * volumes, shape[1]), dtype=np.float32)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for start in range(0, shape[0], len(block)):
                    member.write(np.roll(block, start % 97, axis=0)[: shape[0] - start].tobytes())


def write_people(root: Path, n_segments: int, volumes: int, is_cifti: bool) -> None:
    """Many people with links to one recording: each is read in full, the disk holds it once."""
    if is_cifti:
        windows = CIFTI_VOLUMES // volumes
        first = root / "person0" / "MNINonLinear" / "Results" / "rest" / "rest_Atlas_MSMAll.dtseries.nii"
        first.parent.mkdir(parents=True)
        rng = np.random.default_rng(0)
        data = rng.standard_normal((CIFTI_VOLUMES, N_CORTEX), dtype=np.float32)
        subcortex = rng.standard_normal((CIFTI_VOLUMES, sum(SUBCORTEX.values())), dtype=np.float32)
        write_cortex(first, data, np.arange(N_CORTEX), 0.72, subcortex)
    else:
        windows = WINDOWS_A_PERSON
        first = root / "person0" / hcp.NPZ_NAME
        write_archive(first, windows, volumes)
    for number in range(1, -(-n_segments // windows)):
        other = root / f"person{number}" / first.relative_to(root / "person0")
        other.parent.mkdir(parents=True)
        os.link(first, other)


def measure(root: Path, out: Path, volumes: int) -> dict[str, Any]:
    """Prepare in a process of its own."""

    def child(results: Any) -> None:
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        hcp.prepare_hcp(root, out, window_s=volumes * NPZ_TR_S)
        seconds = time.process_time() - start
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        segments = hcp.BrainSegments.open(out)
        results.send({"peak": usage * 1024, "before": before * 1024, "seconds": seconds, "rows": len(segments),
                     "voxels": segments.n_voxels})  # fmt: skip

    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(send,))
    process.start()
    send.close()
    found: dict[str, Any] = receive.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--segments", type=int, nargs="+", default=[6000, 60000])
    parser.add_argument("--volumes", type=int, default=11, help="volumes a segment; 11 at 0.72 s are 8 s")
    parser.add_argument("--cifti", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder when left out")
    arguments = parser.parse_args()
    for n_segments in arguments.segments:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            root = Path(scratch) / "raw"
            people = multiprocessing.get_context("fork").Process(
                target=write_people, args=(root, n_segments, arguments.volumes, arguments.cifti)
            )
            people.start()
            people.join()
            found = measure(root, Path(scratch) / "hcp.zarr", arguments.volumes)
            print(
                f"{found['rows']:,} segments x {found['voxels']:,} voxels from {len(list(root.iterdir()))} files: "
                f"peak memory {found['peak'] / 1e6:,.0f} MB ({found['before'] / 1e6:,.0f} MB before the first file), "
                f"{found['seconds']:.0f} s CPU", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
