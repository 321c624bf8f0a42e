"""Measure and show what a generator in training draws from true captions.

python -m kit.look STATE --kit KIT [--count 192] [--picture FILE.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from kit.generator import build_generator
from mindvideo.foundation.drawn import check_generator
from mindvideo.models.foundation import Foundation


def save_picture(path: Path, truth: np.ndarray, drawn: np.ndarray, rows: int = 12) -> None:
    """Truth above drawing, all frames of a clip side by side, two clips a row."""
    tiles = [np.concatenate([np.concatenate([*kind[i], *kind[i + 1]], 1) for kind in (truth, drawn)], 0)
             for i in range(0, 2 * rows, 2)]  # fmt: skip
    cv2.imwrite(str(path), cv2.resize(np.concatenate(tiles, 0)[..., ::-1], None, fx=1.5, fy=1.5))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    foundation, state = Foundation(given.kit), torch.load(given.state / "last.pt")
    unet = build_generator(given.kit)
    unet.load_state_dict(state["averaged"])
    figures, truth, drawn = check_generator(
        foundation, unet.eval(), given.count, given.count // 2, given.steps, given.guidance
    )
    if given.picture:
        save_picture(given.picture, truth, drawn)
    print(json.dumps({"step": state["step"]} | {name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
