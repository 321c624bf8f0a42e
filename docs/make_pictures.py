"""The pictures in README and docs from a finished run: ``python docs/make_pictures.py runs/demo``.

Windows are picked by rank of SSIM alone – best, upper quartile, median – and the worst go into a picture of their own.
Truth is above, reconstruction below; nothing is retouched.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import zarr

from mindvideo.study import Study

FRAMES = (0, 2, 5)
SCALE = 2


def sheet(truth: np.ndarray, found: np.ndarray, chosen: list[int], per_row: int = 4) -> np.ndarray:
    """Truth above reconstruction for some windows, three frames each, four windows a row."""
    rows = []
    for start in range(0, len(chosen), per_row):
        for clips in (truth, found):
            windows = [
                np.concatenate([clips[index, frame] for frame in FRAMES], axis=1)
                for index in chosen[start : start + per_row]
            ]
            gap = np.full((windows[0].shape[0], 6, 3), 255, np.uint8)
            rows.append(np.concatenate([part for window in windows for part in (window, gap)][:-1], axis=1))
        rows.append(np.full((8, rows[-1].shape[1], 3), 255, np.uint8))
    picture = np.concatenate(rows[:-1], axis=0)
    return cv2.resize(picture, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)


def main(run_dir: Path, out: Path) -> None:
    """Write ``NAME.png`` and ``NAME_worst.png`` into ``out``, where NAME is the recipe's."""
    study = Study.open(run_dir).recipe.name
    clips = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="r")
    truth, found = np.asarray(clips["truth"][:]), np.asarray(clips["reconstruction"][:])
    with (run_dir / "evaluate" / "windows.csv").open() as handle:
        ssim = np.array([float(row["ssim_rgb"]) for row in csv.DictReader(handle)])
    order = np.argsort(-ssim)
    n = len(order)
    middle = [n // 4 - 1, n // 4, n // 4 + 1, n // 4 + 2, n // 2 - 2, n // 2 - 1, n // 2, n // 2 + 1]
    out.mkdir(parents=True, exist_ok=True)
    for name, ranks in ((study, [0, 1, 2, 3, *middle]), (f"{study}_worst", list(range(n - 8, n)))):
        picture = sheet(truth, found, [int(order[rank]) for rank in ranks])
        cv2.imwrite(str(out / f"{name}.png"), picture[..., ::-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "images")
