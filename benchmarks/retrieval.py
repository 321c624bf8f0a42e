"""How often does ridge regression find the window that was seen among 300 test windows?

Run with ``python benchmarks/retrieval.py STORE …``. Ridge regression from the scans of two volumes to CLIP's embedding of the
caption, fitted on the training windows; 20 draws of 300 test windows. A window of the same caption cannot be told apart from
the one that was seen, so both are counted: the very window, and any with its caption.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.evaluate.retrieval import normalise
from mindvideo.models.foundation import Foundation
from mindvideo.train.ridge import fit_linear_decoder

WINDOW, AMONG, DRAWS, BATCH = 2, 300, 20, 64


def main(places: list[str]) -> None:
    """Print a line a store."""
    foundation = Foundation("embedded")
    for place in places:
        scans, embeddings, captions = {}, {}, []
        for split in ("train", "test"):
            windows = Windows(Store.open(Path(place)), split, WINDOW)
            captions = windows.captions
            scans[split] = windows.fmri(np.arange(len(windows))).reshape(len(windows), -1)
            parts = [foundation.encode_text(captions[at : at + BATCH])[1] for at in range(0, len(captions), BATCH)]
            embeddings[split] = np.concatenate([part.float().numpy() for part in parts])
        mean = embeddings["train"].mean(axis=0)
        read = fit_linear_decoder(scans["train"], embeddings["train"]).predict(scans["test"])
        similarity = normalise(read - mean) @ normalise(embeddings["test"] - mean).T
        rng, found, alike = np.random.default_rng(0), [], []
        for _ in range(DRAWS):
            chosen = rng.choice(len(captions), AMONG, replace=False)
            best, told = similarity[np.ix_(chosen, chosen)].argmax(axis=1), np.array(captions)[chosen]
            found.append(np.mean(best == np.arange(AMONG)))
            alike.append(np.mean(told[best] == told))
        print(f"{place}  the very window {np.mean(found):.3f}  its caption {np.mean(alike):.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
