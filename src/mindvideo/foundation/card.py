"""A card for every part of the kit: what it is, what it was trained on and how, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindvideo.foundation.rounds import read_rounds

_WHAT = {
    "vae": ("AutoencoderKL, frames of 64 x 64 to latents of 4 x 16 x 16", "vae"),
    "clip": ("CLIP's two towers over one frame and its caption", "text"),
    "clip_image": (
        "CLIP's image tower, over one frame and its caption; starts from the image classifier",
        "image to text",
    ),
    "image_classifier": ("ViT over thing x colour", "image classifier"),
    "video_classifier": ("VideoMAE over thing x motion", "video classifier"),
    "clip_text": ("CLIP's text tower, further trained on captions and films, so that its tokens hold motion", "text"),
    "captioner": ("BLIP, a sentence for a frame", "captioner"),
    "unet": ("UNet2DConditionModel, text to one frame's latent, v-prediction", "unet"),
    "motion": ("Temporal attention of the inflated generator; the 2-D generator went on with it", "motion"),
    "vae_decoder": ("The autoencoder's decoder, further trained on fixed latents", "vae"),
}
_FOLDER = {"clip": "text_encoder", "clip_image": "image_encoder", "clip_text": "text_encoder"}
_NAME = {"vae_decoder": "card_decoder.md", "clip_text": "card_films.md"}


def _command(part: str, number: int, made: dict[str, Any]) -> str:
    changed = {"round": number} if number > 1 else {}
    changed |= {name.replace("_", "-"): value for name, value in made.get("changed", {}).items()}
    options = "".join(f" --{name} {value}" for name, value in changed.items())
    return f"`mindvideo foundation train OUT --part {part} --recipe {made['recipe']} --seed {made['seed']}{options}`"


def _describe_rounds(part: str, rounds: list[dict[str, Any]]) -> str:
    """Settings, command and note of each round, in paragraphs."""
    paragraphs = []
    if len(rounds) > 1:
        paragraphs.append(f"{len(rounds)} rounds, each from the weights of the one before. Stored in half precision.")
    for number, made in enumerate(rounds, start=1):
        settings = ", ".join(f"{name} {value}" for name, value in made["settings"].items())
        if len(rounds) > 1:
            paragraphs.append(f"**Settings of round {number}** (recipe `{made['recipe']}`): {settings}.")
        else:
            paragraphs.append(f"**Settings** (recipe `{made['recipe']}`): {settings}. Stored in half precision.")
        paragraphs.append(f"**Made with** {made.get('made_with', _command(part, number, made))}.")
        if made.get("note"):
            paragraphs[-1] += f"\n**Note:** {made['note']}"
    return "\n\n".join(paragraphs)


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
        rounds = read_rounds(out / "work" / part)
        if not rounds:
            continue
        figures = [
            gate
            for gate in gates
            if gate["gate"].startswith(prefix) or (part.startswith("clip") and "top 1 of" in gate["gate"])
        ]
        rows = [
            f"| {g['gate']} | {g['found']:.3f} | {g['wanted']} | {'yes' if g['passed'] else 'no'} |" for g in figures
        ]
        table = ["| gate, on fresh scenes | found | wanted | reached |", "|---|---|---|---|", *rows] if rows else []
        text = [
            f"# {part}",
            "",
            f"{what}. Part of the embedded kit; random initial weights, no pre-trained ones.",
            "",
            f"**Data:** {rounds[0]['clips']} procedural clips of the picture-book world (seed {rounds[0]['seed']}), "
            f"held-out combinations left out. {_describe_rounds(part, rounds)}",
            "",
            *table,
        ]
        folder = out / _FOLDER.get(part, part)
        folder = folder if folder.is_dir() else out / part.partition("_")[0]
        (folder / _NAME.get(part, "card.md")).write_text("\n".join(text).rstrip() + "\n")
