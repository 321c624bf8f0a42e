"""Which encoder reads most of the captions' text tokens from the same recordings?

Run with ``python benchmarks/token_r2.py RUN OTHER …`` after studies that reached ``align``. R² is the share of the variance of
the test captions' tokens, around their mean over the training windows, that ``align``'s encoder reads from all test windows.
Differences from the first run are paired by window; their 95 % interval and two-sided P are over blocks of windows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from mindvideo.data.store import Store
from mindvideo.data.windows import Windows, block_numbers
from mindvideo.evaluate.statistics import block_bootstrap_interval, block_permutation_p
from mindvideo.models.encoders import load_encoder
from mindvideo.models.foundation import Foundation
from mindvideo.study import Study

BATCH, DRAWS = 32, 10_000


@torch.inference_mode()
def read_tokens(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Each test window's part in R² (n,), and its block (n,)."""
    recipe, store = Study.open(run).recipe, Store.open(run / "prepare" / "store.zarr")
    foundation, encoder = Foundation(recipe.foundation), load_encoder(run / "align" / "model").eval()
    train, test = (Windows(store, split, recipe.align.window) for split in ("train", "test"))
    captions = list(train.captions)
    mean = torch.stack(
        [foundation.encode_text(captions[at : at + BATCH])[0].sum(0) for at in range(0, len(captions), BATCH)]
    )
    mean_token = mean.sum(0) / len(captions)
    errors, spreads = [], []
    for at in range(0, len(test), BATCH):
        chosen = np.arange(at, min(at + BATCH, len(test)))
        truth = foundation.encode_text([test.captions[i] for i in chosen])[0]
        read = encoder(torch.from_numpy(test.fmri(chosen)).float()).float()
        errors.append((read - truth).square().flatten(1).sum(1))
        spreads.append((truth - mean_token).square().flatten(1).sum(1))
    values = 1 - torch.cat(errors) / torch.cat(spreads).mean()
    block_scans = max(1, round(recipe.evaluate.block_s / store.tr_s))
    return values.double().numpy(), block_numbers(np.array(test.segment), np.array(test.scan), block_scans)


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    first: np.ndarray | None = None
    for run in parser.parse_args().runs:
        values, block = read_tokens(run)
        line = f"{run.name:12}  R2 {values.mean():.3f}  windows {len(values)}  blocks {len(np.unique(block))}"
        if first is not None:
            low, high = block_bootstrap_interval(values - first, block, DRAWS, np.random.default_rng(0))
            p = block_permutation_p(values - first, block, DRAWS, np.random.default_rng(0), "two-sided")
            line += f"  difference {np.mean(values - first):+.3f} [{low:+.3f}, {high:+.3f}]  P {p:.4f}"
        first = values if first is None else first
        print(line, flush=True)


if __name__ == "__main__":
    main()
