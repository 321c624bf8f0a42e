"""Put a generator's averaged weights into a kit, in half precision.

python -m kit.milestone STATE --kit KIT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kit.generator import build_generator
from kit.save import save_generator


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("--kit", type=Path, required=True)
    given = parser.parse_args()
    state = torch.load(given.state / "last.pt")
    unet = build_generator(given.kit)
    unet.load_state_dict(state["averaged"])
    save_generator(unet, given.kit)
    print(f"{given.kit}: the weights of step {state['step']}")


if __name__ == "__main__":
    main()
