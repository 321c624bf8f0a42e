"""A small random store for tests."""

import numpy as np

from mindvideo import atlas

SCANS = {"seg1": 5, "seg2": 5, "seg10": 5, "test1": 4, "test2": 4}
SPLITS = {"train": ["seg1", "seg2"], "validation": ["seg10"], "test": ["test1", "test2"]}
HEADER = {"subject": "subject1", "tr_s": 2.0, "lag_s": 4.0, "fps": 3, "size": 8, "splits": SPLITS}


def make_parts(seed=0):
    """Random content of every segment: fmri, repeats, frames, scene, captions, frame captions; 7 voxels."""
    rng = np.random.default_rng(seed)
    parts, scene = {}, 0
    for number, (name, n) in enumerate(SCANS.items()):
        repeats = rng.standard_normal((2 if name.startswith("seg") else 3, n, 7)).astype(np.float32)
        scenes = scene + np.cumsum(rng.random((n, 6)) < 0.2).reshape(n, 6)
        scene = int(scenes.max()) + 1
        words = [[f"frame {number} {scan} {frame} é" for frame in range(6)] for scan in range(n)]
        frames = rng.integers(0, 256, (n, 6, 8, 8, 3), dtype=np.uint8)
        parts[name] = (repeats.mean(axis=0), repeats, frames, scenes, [row[0] for row in words], words)
    return parts


def make_vertex():
    members = np.concatenate([atlas.area_of("L_V1")[:3], atlas.area_of("R_V1")[:2], atlas.area_of("MT")[:2]])
    return members[atlas.hierarchy_order(members)]


def fill(writer, parts, names=None):
    for name in names or parts:
        fmri, repeats, frames, scene, captions, words = parts[name]
        writer.write_fmri(name, fmri, repeats)
        writer.write_frames(name, frames)
        writer.write_scene(name, scene)
        writer.write_captions(name, captions, words)
