"""Small data sets in the layouts that the tutorials start from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mindvideo.atlas import area_of
from mindvideo.data.cifti import write_cortex
from mindvideo.data.video import write_video

TR_S, SCANS, SOURCE_FPS, SIZE = 2.0, 16, 6, 48
FILMS = ("film1", "film2", "film3", "film4", "film5")
RUNS = {"1": ("film1", "film2", "film5"), "2": ("film3", "film4", "film5")}
PAUSE_S, LAG_S = 6.0, 4.0
CONFOUNDS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter")


def film(name: str) -> np.ndarray:
    """Two scenes of a square that moves on a ground of its own colour, uint8 (frames, H, W, 3)."""
    rng = np.random.default_rng(FILMS.index(name))
    frames = np.empty((round(SCANS * TR_S * SOURCE_FPS), SIZE, SIZE, 3), np.uint8)
    for scene in np.array_split(np.arange(len(frames)), 2):
        frames[scene] = rng.integers(0, 256, 3)
        colour, row = rng.integers(0, 256, 3), rng.integers(4, SIZE - 16)
        for number, at in enumerate(scene):
            column = (number // 4) % (SIZE - 12)
            frames[at, row : row + 12, column : column + 12] = colour
    return frames


def vertices() -> np.ndarray:
    """Cortical positions of some visual areas, ascending."""
    rng = np.random.default_rng(11)
    areas = ("V1", "V2", "V3", "V4", "MT", "LO1")
    return np.sort(np.concatenate([rng.choice(area_of(name), 20, replace=False) for name in areas]))


def response(vertex: np.ndarray) -> dict[str, np.ndarray]:
    """What each film evokes, float (scans, vertices): a random map of its frames' mean colours, scan by scan."""
    rng = np.random.default_rng(12)
    mapping = rng.standard_normal((3, len(vertex)))
    made = {}
    for name in FILMS:
        colours = film(name).reshape(SCANS, -1, 3).mean(axis=1) / 64
        made[name] = colours @ mapping + rng.standard_normal((SCANS, len(vertex)))
    return made


def make_fmriprep(root: Path) -> None:
    """``bids/``, ``derivatives/`` and captions of one person who saw five films in two runs, the last of them twice."""
    func, events = root / "derivatives" / "sub-01" / "func", root / "bids" / "sub-01" / "func"
    for folder in (func, events, root / "bids" / "stimuli"):
        folder.mkdir(parents=True)
    vertex, rng = vertices(), np.random.default_rng(13)
    evoked = response(vertex)
    for name in FILMS:
        write_video(root / "bids" / "stimuli" / f"{name}.mp4", film(name), SOURCE_FPS, SIZE)
    for run, shown in RUNS.items():
        length = SCANS * TR_S + PAUSE_S
        volumes = round((len(shown) * length + LAG_S + 10) / TR_S)
        data = 8000 + rng.standard_normal((volumes, len(vertex)))
        rows = ["onset\tduration\tstim_file"]
        for number, name in enumerate(shown):
            onset = PAUSE_S + number * length
            first = round((onset + LAG_S) / TR_S)
            data[first : first + SCANS] += evoked[name]
            rows.append(f"{onset}\t{SCANS * TR_S}\t{name}.mp4")
        stem = f"sub-01_task-movie_run-{run}"
        bold = func / f"{stem}_space-fsLR_den-91k_bold.dtseries.nii"
        write_cortex(bold, data, vertex, TR_S)
        bold.with_suffix("").with_suffix(".json").write_text(json.dumps({"RepetitionTime": TR_S}))
        table = np.vstack([CONFOUNDS, rng.standard_normal((volumes, len(CONFOUNDS))).round(6).astype(str)])
        lines = "\n".join("\t".join(line) for line in table)
        (func / f"{stem}_desc-confounds_timeseries.tsv").write_text(lines + "\n")
        (events / f"{stem}_events.tsv").write_text("\n".join(rows) + "\n")
    captions = [f"{name},{scene * SCANS * TR_S / 2},scene {scene} of {name}" for name in FILMS for scene in (0, 1)]
    (root / "captions.csv").write_text("\n".join(["segment,time_s,caption", *captions]) + "\n")
