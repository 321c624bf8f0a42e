"""From a released folder to one that `from_pretrained` loads: its parts, or the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindvideo.errors import ModelError, SettingError
from mindvideo.files import beside_folder, disk_errors
from mindvideo.generate.pipeline import MindVideoPipeline, save_kept
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.convert import PARTS, convert_parts
from mindvideo.models.foundation import Foundation

STEPS, GUIDANCE_SCALE = 200, 12.5  # the paper's sampling,
NUM_FRAMES, FRAME_SIZE = 6, 256  # and the clips its generator was trained on (section 4)


def convert(
    release: Path,
    out: Path,
    *,
    num_voxels: int | None = None,
    overrides: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    foundation: Path | None = None,
) -> list[str]:
    """Convert a release and check that the result loads; OUT appears only when complete.

    Parameters
    ----------
    release, num_voxels, overrides, drop
        As in `mindvideo.models.convert.convert_parts`.
    out : Path
        A new folder.
    foundation : Path, optional
        A folder with the release's tokenizer and text encoder, to make the empty caption's tokens.

    Returns
    -------
    list of str
        What was converted, absent, or interpolated.

    Raises
    ------
    ModelError
        When the release is not whole, or its parts do not fit one another.
    """
    if not release.exists():
        raise ModelError(f"expected a released folder or checkpoint at {release}, found none")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"expected a new folder at {out}, found something there; remove it or give another place")
    with disk_errors(out, "the converted model"), beside_folder(out) as folder:
        found = convert_parts(release, folder, num_voxels=num_voxels, overrides=overrides, drop=drop)
        if set(found.parts) == set(PARTS):
            found.notes += _complete(release, folder, foundation)
        elif "" not in found.parts:
            found.notes.append(f"no whole pipeline: missing {', '.join(sorted(set(PARTS) - set(found.parts)))}")
    return found.notes


def _complete(release: Path, folder: Path, foundation: Path | None) -> list[str]:
    path = release / "scheduler" / "scheduler_config.json"
    try:
        stated = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        raise ModelError(f"expected a readable {path}, found none; fetch the release's scheduler folder") from None
    make_scheduler(stated, "ddim").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": MindVideoPipeline.__name__,
        "fmri_encoder": ["mindvideo.models.encoders.fmri_encoder", "FmriEncoder"],
        "unet": ["mindvideo.models.generators.video_unet", "VideoUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "num_frames": NUM_FRAMES,
        "frame_size": FRAME_SIZE,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    absent = ["the mean training fMRI (set pipe.train_mean, or call with your own scans as negative)"]
    if foundation is None:
        absent.append("the empty caption's tokens for negative='null' (convert with --foundation FOLDER)")
    else:
        save_kept(folder, "null_condition", Foundation(foundation).null_condition())
    MindVideoPipeline.from_pretrained(folder)
    return [
        f"a whole MindVideoPipeline: DDIM, {STEPS} steps, guidance {GUIDANCE_SCALE:g}, {NUM_FRAMES} frames of "
        f"{FRAME_SIZE} x {FRAME_SIZE} pixels",
        f"known to be absent: {'; '.join(absent)}",
    ]
