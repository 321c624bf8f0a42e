"""What every vertex of a simulated brain is: the truth that maps are judged against.

Legend: S scenes, n vertices, A attributes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mindvideo import atlas
from mindvideo.simulate.cortex import retinotopy
from mindvideo.simulate.draws import Draw, draw_from
from mindvideo.simulate.film_features import ATTRIBUTES, scene_features
from mindvideo.simulate.scenes import Scene, draw_scene
from mindvideo.simulate.subject import SimulatedSubject
from mindvideo.simulate.tuning import KINDS

N_SCENES = 400
TOLD = tuple(name for name in ATTRIBUTES if not name.startswith("other"))
"""Attributes whose share is measured: those of a scene's first thing."""


@lru_cache(maxsize=1)
def _scenes() -> tuple[list[Scene], np.ndarray]:
    """Independent scenes and their features; the same for every brain."""
    rng = draw_from(0, Draw.SCENES)
    scenes = [draw_scene(rng, None) for _ in range(N_SCENES)]
    return scenes, scene_features(scenes)


def explained_share(response: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Share of the variance of columns (S, n) that groups of rows (S,) explain, float32 (n,).

    It is 1 - (variance within groups) / (variance), each over its degrees of freedom:
    around 0 without an effect, and 0 for a column that does not vary.
    """
    labels, member = np.unique(group, return_inverse=True)
    indicator = (member[None] == np.arange(len(labels))[:, None]).astype(response.dtype)
    means = indicator @ response / indicator.sum(axis=1, keepdims=True)
    within = ((response - means[member]) ** 2).sum(axis=0) / (len(response) - len(labels))
    total = response.var(axis=0, ddof=1)
    return np.where(total > 0, 1 - within / np.where(total > 0, total, 1), 0).astype(np.float32)


def describe_vertices(subject: SimulatedSubject, noise: float) -> dict[str, np.ndarray]:
    """The truth of one brain, an array for each property.

    Parameters
    ----------
    subject : SimulatedSubject
    noise : float
        As in its recordings.

    Returns
    -------
    dict of str to ndarray
        ``vertex`` (n,) cortical positions and ``area`` their MMP1 labels; ``source``
        (n,) the position of the shared brain whose maps the vertex has, and
        ``own_area`` that one's label; ``is_informative``, ``kind`` (strongest drive),
        ``hrf_peak_s`` and ``signal_to_noise`` (n,); ``drive`` (n, 5), strengths in the
        order of ``drive_names``; ``looks_at`` (n, 2), centre of the receptive field, x
        to the right and y upwards in half frame widths, NaN where there is none;
        ``attribute_share`` (n, A) in the order of ``attribute_names``: share of the
        variance of the neural response to independent scenes that the attribute
        explains (`explained_share`).
    """
    scenes, features = _scenes()
    told = np.zeros((len(subject.vertex), len(TOLD)), np.float32)
    response = subject.neural(features)
    for column, name in enumerate(TOLD):
        group = np.array([getattr(scene, name) for scene in scenes])
        told[subject.is_informative, column] = explained_share(response, group)
    share = subject.reliability
    labels = atlas.area_labels()
    return {
        "vertex": subject.vertex,
        "area": labels[subject.vertex],
        "source": subject.source,
        "own_area": labels[subject.source],
        "kind": subject.kind,
        "is_informative": subject.is_informative,
        "hrf_peak_s": subject.hrf_peak_s,
        "signal_to_noise": (np.sqrt(share / (1 - share)) / noise).astype(np.float32),
        "drive": subject.strengths(),
        "drive_names": np.array(KINDS),
        "looks_at": np.where(subject.is_informative[:, None], retinotopy()[0][subject.source], np.float32(np.nan)),
        "attribute_share": told,
        "attribute_names": np.array(TOLD),
    }
