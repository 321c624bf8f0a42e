"""A card for every part of the kit: what it is, what it was trained on and how, and how well it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WHAT = {
    "vae": ("AutoencoderKL, frames of 64 x 64 to latents of 4 x 16 x 16", "vae"),
    "clip": ("CLIP's two towers over one frame and its caption", "text"),
    "clip_image": (
        "CLIP's image tower, over one frame and its caption; starts from the image classifier",
        "image to text",
    ),
    "image_classifier": ("ViT over thing x colour", "image classifier"),
    "video_classifier": ("VideoMAE over thing x motion", "video classifier"),
    "captioner": ("BLIP, a sentence for a frame", "captioner"),
    "unet": ("UNet2DConditionModel, text to one frame's latent, v-prediction", "unet"),
    "motion": ("Temporal attention of the inflated generator; the 2-D generator went on with it", "motion"),
    "vae_decoder": ("The autoencoder's decoder, further trained on fixed latents", "vae"),
}
_FOLDER = {"clip": "text_encoder", "clip_image": "image_encoder"}


def write_cards(out: Path, gates: list[dict[str, Any]]) -> None:
    """Write ``card.md`` into every trained part's folder, from ``work/PART/made.json`` and the measured gates.

    Parameters
    ----------
    out : Path
        The kit.
    gates : list of dict
        What `mindvideo.foundation.check.check_kit` returned.
    """
    for part, (what, prefix) in _WHAT.items():
        path = out / "work" / part / "made.json"
        if not path.is_file():
            continue
        made = json.loads(path.read_text())
        settings = ", ".join(f"{name} {value}" for name, value in made["settings"].items())
        figures = [
            gate
            for gate in gates
            if gate["gate"].startswith(prefix) or (part.startswith("clip") and "top 1 of" in gate["gate"])
        ]
        command = f"`mindvideo foundation train OUT --part {part} --recipe {made['recipe']} --seed {made['seed']}`"
        rows = [
            f"| {g['gate']} | {g['found']:.3f} | {g['wanted']} | {'yes' if g['passed'] else 'no'} |" for g in figures
        ]
        table = ["| gate, on fresh scenes | found | wanted | reached |", "|---|---|---|---|", *rows] if rows else []
        text = [
            f"# {part}",
            "",
            f"{what}. Part of the embedded kit; random initial weights, no pre-trained ones.",
            "",
            f"**Data:** {made['clips']} procedural clips of the picture-book world (seed {made['seed']}), held-out "
            "combinations left out. "
            f"**Settings** (recipe `{made['recipe']}`): {settings}. Stored in half precision.",
            "",
            f"**Made with** {made.get('made_with', command)}.",
            *([f"**Note:** {made['note']}"] if made.get("note") else []),
            "",
            *table,
        ]
        folder = out / _FOLDER.get(part, part)
        folder = folder if folder.is_dir() else out / part.partition("_")[0]
        name = "card.md" if part != "vae_decoder" else "card_decoder.md"
        (folder / name).write_text("\n".join(text).rstrip() + "\n")
