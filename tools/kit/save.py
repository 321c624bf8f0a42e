"""Write trained parts into a kit's folder, in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from mindvideo.models.generators.video_unet import VideoUNet


def save_part(part: Any, folder: Path) -> None:
    """Write a part, without saying where it was made."""
    part.half().save_pretrained(folder)
    part.float()
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_generator(video: VideoUNet, kit: Path) -> None:
    """Write the 2-D weights to ``kit/unet`` and what only clips need to ``kit/motion``.

    Parameters
    ----------
    video : VideoUNet
        Inflated from the 2-D UNet whose configuration is in ``kit/unet``.
    kit : Path
    """
    weights = video.state_dict()
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(kit / "unet"))
    flat = {name: weights[name] for name in unet.state_dict()}
    unet.load_state_dict(flat)
    save_part(unet, kit / "unet")
    motion = {name: tensor.half().contiguous() for name, tensor in weights.items() if name not in flat}
    (kit / "motion").mkdir(exist_ok=True)
    save_file(motion, kit / "motion" / "model.safetensors")
    config = {
        "part": "what the inflated generator has beyond the 2-D one",
        "parameters": sum(tensor.numel() for tensor in motion.values()),
        "frame_positions": video.config.frame_positions,
        "noise_share": video.config.noise_share,
    }
    (kit / "motion" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
