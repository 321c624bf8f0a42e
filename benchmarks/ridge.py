"""Peak memory of ridge regression from the whole cortex: a float64 copy of all inputs against blocks of them in float32.

``python benchmarks/ridge.py`` fits both to the same random numbers, each in a process of its own, and prints the memory
that each adds to the inputs and targets themselves, its ratio, and how far the predictions are apart.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV

from mindvideo.train.ridge import ALPHAS, LinearDecoder, fit_linear_decoder, principal_components


def plain(inputs_NX: np.ndarray, targets_NT: np.ndarray) -> LinearDecoder:
    """As it was done before: all inputs scaled, and once more in double precision."""
    set_backend("numpy")
    centre, scale = inputs_NX.mean(axis=0), float(inputs_NX.std())
    fitted = ((inputs_NX - centre) / scale).astype(np.float64)
    mean_T = targets_NT.mean(axis=0, dtype=np.float64).astype(np.float32)
    components_QT, _ = principal_components(targets_NT - mean_T)
    scores_NQ = ((targets_NT - mean_T) @ components_QT.T).astype(np.float64)
    model = KernelRidgeCV(alphas=ALPHAS, kernel="precomputed", cv=5, solver_params={"local_alpha": False}, warn=False)
    model.fit(fitted @ fitted.T, scores_NQ)
    weights = (fitted.T @ np.asarray(model.dual_coef_)).astype(np.float32)
    return LinearDecoder(centre, scale, weights, components_QT.astype(np.float32), mean_T)


WAYS = {"plain": plain, "blocks": fit_linear_decoder}


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, scans: int, voxels: int, out: Path) -> None:
    """Fit one way; print the bytes that it added and the CPU seconds, and keep some predictions."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((scans, voxels), dtype=np.float32)
    targets = inputs[:, :40] @ rng.standard_normal((40, 96), dtype=np.float32)
    targets += 3 * rng.standard_normal(targets.shape, dtype=np.float32)
    held, start = peak_bytes(), time.process_time()
    decoder = WAYS[way](inputs, targets)
    print(peak_bytes() - held, inputs.nbytes, time.process_time() - start)
    np.save(out, decoder.predict(inputs[:50]))


def main() -> None:
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=4320)
    parser.add_argument("--voxels", type=int, default=59412)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.scans, arguments.voxels, arguments.out)
        return
    added, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            out = Path(folder) / f"{way}.npy"
            sizes = ["--scans", str(arguments.scans), "--voxels", str(arguments.voxels)]
            command = [sys.executable, __file__, "--way", way, "--out", str(out), *sizes]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            added[way], inputs, seconds = int(said[0]), int(said[1]), float(said[2])
            found[way] = np.load(out)
            print(
                f"{way}: {added[way] / 2**30:.2f} GiB beside {inputs / 2**30:.2f} of inputs, {seconds:.0f} CPU s",
                flush=True,
            )
    apart = np.abs(found["plain"] - found["blocks"]).max() / found["plain"].std()
    print(f"memory: {added['plain'] / added['blocks']:.1f} x less; predictions apart by {apart:.1e} of their spread")


if __name__ == "__main__":
    main()
