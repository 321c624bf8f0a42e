"""Which encoder reads most of the captions' text tokens from the same recordings?

Run with ``python benchmarks/token_r2.py RUN OTHER …`` after studies that reached ``align``. R² is the share of the variance of
the test captions' tokens, around their mean over the training windows, that ``align``'s encoder reads from all test windows,
of several people the mean over them. Differences from the first run are paired by window; their 95 % interval and two-sided P
are over blocks of windows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from mindvideo.data.store import open_stores
from mindvideo.data.windows import Windows, block_numbers
from mindvideo.evaluate.statistics import block_bootstrap_interval, block_permutation_p
from mindvideo.models.encoders import load_encoder
from mindvideo.models.foundation import Foundation
from mindvideo.study import Study

BATCH, DRAWS = 32, 10_000


@torch.inference_mode()
def read_tokens(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Each test window's part in R² (n,), and its block (n,)."""
    recipe = Study.open(run).recipe
    stores = open_stores(recipe.data, run)
    foundation, encoder = Foundation(recipe.foundation), load_encoder(run / "align" / "model").eval()
    train, test = (Windows(stores, split, recipe.align.window) for split in ("train", "test"))

    def encode(captions: list[str]) -> torch.Tensor:
        return foundation.encode_text(captions)[0]

    films = train.captions[: int((train.person == 0).sum())]
    sums = [encode(films[at : at + BATCH]).sum(0) for at in range(0, len(films), BATCH)]
    mean_token = torch.stack(sums).sum(0) / len(films)
    errors, spreads = [], []
    for at in range(0, len(test), BATCH):
        chosen = np.arange(at, min(at + BATCH, len(test)))
        truth = encode([test.captions[i] for i in chosen])
        read = encoder(torch.from_numpy(test.fmri(chosen)), torch.from_numpy(test.person[chosen])).float()
        errors.append((read - truth).square().flatten(1).sum(1))
        spreads.append((truth - mean_token).square().flatten(1).sum(1))
    values = (1 - torch.cat(errors) / torch.cat(spreads).mean()).double().numpy()
    first = test.person == 0
    of_film = np.bincount(test.film, values) / np.bincount(test.film)
    block_scans = max(1, round(recipe.evaluate.block_s / stores[0].tr_s))
    return of_film, block_numbers(test.segment[first], test.scan[first], block_scans)


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
