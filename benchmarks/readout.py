"""Are the masked model's features worth more to a linear read-out than the voxels they come from?

Run with ``python benchmarks/readout.py RUN``. Ridge regression learns the captions' text tokens from one scan, from n
training windows taken evenly over the training films, and is scored by the variance it explains on the validation films.
Its inputs are the voxels, the masked model's tokens, or both; also the tokens of an untrained model. The penalty of every
component is chosen by cross-validation on the n windows alone. The test films are not read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from mindvideo.data.store import Store
from mindvideo.data.windows import Windows, spread_evenly
from mindvideo.models.foundation import Foundation
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.study import Study
from mindvideo.train.ridge import fit_linear_decoder, token_r2

SIZES = (60, 120, 240, 480, 960, 1920, 3840)


def encode(model: MaskedBrainModel, scans_NV: np.ndarray) -> np.ndarray:
    """Tokens of every scan, flat: (N, P * D) float32."""
    with torch.inference_mode():
        parts = [model.encode(torch.from_numpy(scans_NV[i : i + 64])).flatten(1) for i in range(0, len(scans_NV), 64)]
    return torch.cat(parts).float().numpy()


def read_inputs(run: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """What ridge regression reads, by name and split, and the tokens it is to predict, by split."""
    store, foundation = Store.open(run / "prepare" / "store.zarr"), Foundation(Study.open(run).recipe.foundation)
    trained = MaskedBrainModel.from_pretrained(run / "adapt" / "model").eval()
    torch.manual_seed(0)
    untrained = MaskedBrainModel.from_config(trained.config).eval()
    names = ("voxels", "tokens", "untrained tokens", "voxels and tokens")
    inputs: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    targets = {}
    for split in ("train", "validation"):
        windows = Windows(store, split, 1)
        scans = windows.fmri(np.arange(len(windows)))[:, 0]
        inputs["voxels"][split] = scans
        inputs["tokens"][split] = encode(trained, scans)
        inputs["untrained tokens"][split] = encode(untrained, scans)
        tokens = inputs["tokens"][split]
        both = [part / np.sqrt(part.var() * part.shape[1]) for part in (scans, tokens)]
        inputs["voxels and tokens"][split] = np.concatenate(both, axis=1)
        captions = list(windows.captions)
        distinct = sorted(set(captions))
        encoded = dict(zip(distinct, foundation.encode_text(distinct)[0].flatten(1).numpy(), strict=True))
        targets[split] = np.stack([encoded[caption] for caption in captions])
    return inputs, targets


def main() -> None:
    """Print the table, and JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    inputs, targets = read_inputs(arguments.run)
    rows = []
    for n in [size for size in SIZES if size < len(targets["train"])] + [len(targets["train"])]:
        chosen = spread_evenly(len(targets["train"]), n)
        row: dict[str, float] = {"windows": n}
        for name, parts in inputs.items():
            decoder = fit_linear_decoder(parts["train"][chosen], targets["train"][chosen])
            row[name] = token_r2(decoder.predict(parts["validation"]), targets["validation"], decoder.mean)
        rows.append(row)
        if not arguments.json:
            print("  ".join(f"{key} {value:.3f}" if key != "windows" else f"{n:5d}" for key, value in row.items()))
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
