"""The sets of clips that a reconstruction is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["control", "baseline", "ceiling"]
"""A *control* is made without the window's own brain signal, a *baseline* without any brain, a
*ceiling* from the stimulus itself (docs/method.md, Scores and controls)."""


@dataclass(frozen=True)
class ClipSet:
    """A set of clips; its ``note`` stands beside every P against it."""

    name: str
    role: Role
    label: str
    definition: str
    note: str = ""


CLIP_SETS = {
    each.name: each
    for each in (
        ClipSet("shuffled", "control", "shuffled brain", "same method and seeds, fMRI of a window of another scene"),
        ClipSet("mean", "control", "mean brain", "same method and seeds, the mean training fMRI as the condition"),
        ClipSet(
            "other_person", "control", "another person, another scene",
            "same method and seeds, another person's fMRI of a window of another scene",
        ),
        ClipSet(
            "same_scene", "control", "another person, same scene",
            "same method and seeds, another person's fMRI of the same window: what the people's brains share",
        ),
        ClipSet("random_train", "baseline", "random training clip", "a random training clip for every window"),
        ClipSet("constant", "baseline", "mean training frame", "the mean training frame"),
        ClipSet(
            "shuffled_pairing", "control", "shuffled pairing",
            "the very same reconstructions, each scored against the truth of another block of clips",
        ),
        ClipSet(
            "mean_truth_frame", "baseline", "mean frame of the truth",
            "the mean frame of the truth; made from the answers, so no rival, but what a constant picture can reach",
        ),
        ClipSet("grey", "baseline", "grey", "a picture of grey level 128 everywhere"),
        ClipSet("caption", "ceiling", "true caption", "same method and seeds, the true caption as the condition"),
        ClipSet("vae", "ceiling", "truth through VAE", "the true clip through the autoencoder"),
    )
}  # fmt: skip
"""In the order of tables: those to beat first."""
WITHOUT_BRAIN = ("truth", "caption", "vae", "random_train", "constant")
"""Sets of clips that are the same whoever watched."""


def clip_set(name: str, negative: str = "train_mean") -> ClipSet:
    """What a set of clips is; one that nobody declared (another method's clips) is a baseline.

    ``reconstruct.negative`` decides how the ``mean`` control is made.
    """
    known = CLIP_SETS.get(name) or ClipSet(name, "baseline", name.replace("_", " "), "")
    if name != "mean" or negative not in ("train_mean", "test_mean"):
        return known
    text = known.definition
    if negative == "test_mean":
        text = text.replace("the mean training fMRI", "the mean test fMRI (the paper's, transductive)")
    text += "; it is the negative too, so Eq. 6 cancels and brain and guidance are mixed against it"
    return ClipSet(name, known.role, known.label, text, note="never guided")
