"""A small folder in the layout of Wen 2018, and what becomes of it (docs/method.md, Recordings), written out."""

import numpy as np
from scipy import stats

from mindvideo.atlas import area_of
from mindvideo.data.cifti import write_cortex
from mindvideo.data.series import read_cortex
from mindvideo.data.video import write_video

N_SCANS, FPS_SOURCE, SIZE = 12, 15, 32
TRAIN = ["seg1", "seg2", "seg3", "seg4", "seg10"]
TEST = ["test1", "test2"]
CUTS = {
    "seg1": [70, 201],
    "seg2": [],
    "seg3": [33, 90, 155],
    "seg4": [180],
    "seg10": [111],
    "test1": [96],
    "test2": [299],
}
VOLUMES = {name: 17 if name != "test2" else 18 for name in TRAIN + TEST}
RUNS = {name: 2 if name.startswith("seg") else 3 for name in TRAIN + TEST}


def _choose_vertices():
    rng = np.random.default_rng(8)
    chosen = [rng.choice(area_of(name), 8, replace=False) for name in ("V1", "V3", "LO1", "MT", "FEF", "V8")]
    return np.sort(np.concatenate(chosen)).astype(np.int32)


VERTEX = _choose_vertices()


def marker(i):
    return 10 + (i * 13) % 230


def film(name):
    """Frames whose top left corner says which frame it is; the colour changes at the cuts."""
    for i in range(N_SCANS * 2 * FPS_SOURCE):
        is_odd = np.searchsorted(CUTS[name], i, side="right") % 2
        frame = np.full((SIZE, SIZE, 3), (20, 30, 120) if is_odd else (250, 230, 30), np.uint8)
        frame[:8, :8] = marker(i)
        yield frame


def cifti_path(root, name, run):
    return root / "subject1" / "fmri" / name / "cifti" / f"{name}_{run}_Atlas.dtseries.nii"


def make_raw(root):
    """Films, recordings and captions of subject 1 below ``root``."""
    (root / "stimuli").mkdir()
    rng = np.random.default_rng(9)
    strength = np.linspace(0.0, 4.0, len(VERTEX))[rng.permutation(len(VERTEX))]
    for name in TRAIN + TEST:
        write_video(root / "stimuli" / f"{name}.mp4", film(name), FPS_SOURCE, SIZE)
        shared = rng.standard_normal((VOLUMES[name], len(VERTEX))) * strength
        for run in range(1, RUNS[name] + 1):
            path = cifti_path(root, name, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            time = np.linspace(-1, 1, VOLUMES[name])[:, None]
            drift = 50 * time + 30 * time**3 * rng.standard_normal(len(VERTEX))
            write_cortex(path, 9000 + drift + shared + rng.standard_normal(shared.shape), VERTEX, 2.0)
    rows = ["segment,time_s,caption"]
    for name in TRAIN + TEST:
        rows += [f"{name},{cut / FPS_SOURCE},{name} scene {i}" for i, cut in enumerate([0, *CUTS[name]])]
    (root / "captions.csv").write_text("\n".join(rows))
    return root


def expected_run(root, name, run, later=0):
    """The trim and standardising of docs/method.md, Recordings, written out; ``later`` volumes more of lag."""
    data = read_cortex(cifti_path(root, name, run)).data.astype(float)
    first = (1 if VOLUMES[name] == N_SCANS + 5 else 2) + later
    data = data[first : first + N_SCANS]
    assert len(data) == N_SCANS
    k = np.linspace(-1, 1, N_SCANS)
    data = data - np.stack([np.polyval(np.polyfit(k, column, 4), k) for column in data.T], axis=1)
    return (data - data.mean(axis=0)) / data.std(axis=0, ddof=1)


def expected_p(root):
    z = []
    for name in TRAIN[:-1]:  # the last one validates
        a, b = expected_run(root, name, 1), expected_run(root, name, 2)
        z.append([np.arctanh(np.corrcoef(x, y)[0, 1]) for x, y in zip(a.T, b.T, strict=True)])
    return np.array(z), stats.ttest_1samp(z, 0, axis=0, alternative="greater").pvalue
