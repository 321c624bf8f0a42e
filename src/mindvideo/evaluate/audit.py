"""What bounds the scores on the data's side: noise ceilings, and test films that look like training films."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from mindvideo.data.store import Store
from mindvideo.data.windows import near_duplicates
from mindvideo.evaluate.controls import noise_ceiling


def audit_store(store: Store, segments: Sequence[str]) -> dict[str, str]:
    """What bounds the scores on the data's side, as texts of files by name.

    ``noise_ceiling.json``: median and quartiles over voxels of each segment that has repeated runs;
    ``near_duplicates.json``: test scans that look like training scans, and how many test scans there are.
    """
    ceilings = {}
    for segment in segments:
        repeats = store.repeats(segment)
        if len(repeats) > 1:
            low, middle, high = np.quantile(noise_ceiling(repeats), [0.25, 0.5, 0.75])
            ceilings[segment] = {"runs": len(repeats), "median": middle, "quartiles": [low, high]}
    pairs = [asdict(pair) for pair in near_duplicates(store)]
    n_scans = sum(store.n_scans(segment) for segment in store.segments("test"))
    return {
        "noise_ceiling.json": json.dumps(ceilings, indent=1),
        "near_duplicates.json": json.dumps({"count": len(pairs), "test_scans": n_scans, "pairs": pairs}, indent=1),
    }
