"""How names and numbers are written on the page."""

from __future__ import annotations

import math
import re

from mindvideo.report.read import Run, Score

CLIP_NAMES = {
    "truth": "truth",
    "reconstruction": "reconstruction",
    "shuffled": "shuffled brain",
    "mean": "mean brain",
    "caption": "true caption",
    "vae": "truth through VAE",
    "random_train": "random training clip",
    "constant": "mean training frame",
}

CONTROL_ROLES = {
    "shuffled": "the same generator given the brain activity of another test window",
    "mean": "the same generator given the average brain activity",
    "random_train": "a clip of the training films drawn at random",
    "constant": "the average training frame, unmoving",
    "caption": "ceiling: the same generator given the true caption",
    "vae": "ceiling: the truth through the VAE, all that decoded latents can show",
}
CEILINGS = {"caption", "vae"}

HEADLINE_ORDER = ("video_50way", "video_2way", "image_50way", "image_2way")
"""The headline is the first of these that was computed, whatever it says; it is not chosen by its value."""

_WORDS = {
    "ssim": "SSIM",
    "rgb": "RGB",
    "clip": "CLIP",
    "videomae": "VideoMAE",
    "auc": "AUC",
    "psnr": "PSNR",
    "epe": "flow end-point error",
}


def name_score(name: str) -> str:
    """``image_50way`` → ``image 50-way``, ``ssim_rgb`` → ``SSIM RGB``."""
    words = [_WORDS.get(word, re.sub(r"^(\d+)way$", r"\1-way", word)) for word in name.split("_")]
    return re.sub(r"\btop(\d+)$", r"top-\1", " ".join(words))


def name_clip(name: str) -> str:
    """The label of a kind of clip."""
    return CLIP_NAMES.get(name, name.replace("_", " "))


def is_ceiling(score: Score, control: str) -> bool:
    """Whether a control is an upper bound rather than something to beat."""
    role = score.roles.get(control)
    return role == "ceiling" if role else control in CEILINGS


def write_number(value: float | None, decimals: int = 3) -> str:
    """Three decimals, fewer for large numbers, without the zero before the point; an en dash when there is none."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:.0f}"
    text = f"{value:.{min(1, decimals) if abs(value) >= 10 else decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return re.sub(r"^(-?)0\.", r"\1.", text).replace("-", "−")


def write_interval(interval: tuple[float, float] | None) -> str:
    """``[.190, .240]`` or nothing."""
    return f"[{write_number(interval[0])}, {write_number(interval[1])}]" if interval else ""


def write_p(p: float | None) -> str:
    """``P = .012``, ``P < .001`` or nothing."""
    if p is None:
        return ""
    if p < 0.001:
        return "P < .001"
    return f"P = {write_number(p, 3 if p < 0.1 else 2)}"


def write_seconds(seconds: float | None) -> str:
    """``3 h 05 min``, ``4 min 12 s`` or ``7.2 s``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60):02d} s"
    return f"{int(minutes // 60)} h {int(minutes % 60):02d} min"


def write_bytes(size: float | None) -> str:
    """``1.4 GB`` or ``310 MB`` (powers of ten)."""
    if size is None:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def headline_score(run: Run) -> Score | None:
    """The score the headline speaks of, by a fixed order."""
    identification = [name for name in run.scores if re.match(r"(video|image)_\d+way", name)]
    for name in (*HEADLINE_ORDER, *identification, *run.scores):
        if name in run.scores:
            return run.scores[name]
    return None


def beats_shuffled(score: Score, level: float = 0.05) -> bool | None:
    """Whether a score is better than the shuffled control at ``level``; None when that was not tested."""
    p, control = score.tested("shuffled"), score.controls.get("shuffled")
    if p is None or control is None or score.value is None or score.higher_is_better is None:
        return None
    is_better = score.value > control if score.higher_is_better else score.value < control
    return p < level and is_better


def is_corrected(run: Run) -> bool:
    """Whether the P-values shown are corrected for the number of scores."""
    return any(score.p_holm for score in run.scores.values())


def write_verdict(run: Run) -> tuple[str, str]:
    """The headline of a run and the sentence below it, as plain as the numbers allow.

    Returns
    -------
    (str, str)
        What the evidence says, and over how many scores it says so.
    """
    score = headline_score(run)
    if score is None:
        return "Nothing has been scored yet.", run.stages["evaluate"].sentence.capitalize() + "."
    verdict = beats_shuffled(score)
    if verdict is None:
        title = "Whether this follows the brain is not known: the shuffled control is missing."
    elif verdict:
        title = "The reconstructions follow the brain activity."
    elif is_corrected(run) and any(beats_shuffled(item) for item in run.scores.values()):
        title = (
            f"The reconstructions follow the brain activity on some scores, but not shown on {name_score(score.name)}."
        )
    else:
        title = "No evidence that the reconstructions follow the brain activity."
    tested = {name: beats for name, item in run.scores.items() if (beats := beats_shuffled(item, 0.01)) is not None}
    if not tested:
        return title, "No score was tested against shuffled brain activity."
    failed = [name_score(name) for name, beats in tested.items() if not beats]
    text = (
        f"{len(tested) - len(failed)} of {len(tested)} scores are better than with shuffled brain activity at P < .01"
    )
    text += ", corrected for the number of scores." if is_corrected(run) else " each, not corrected for their number."
    text += f" Not shown for: {', '.join(failed)}." if failed else ""
    return title, text + _unbeaten(score)


def _unbeaten(score: Score) -> str:
    """A sentence on what needs no brain of this window and is not shown to be worse on the headline's score."""
    tested = [(name, p) for name in score.controls if name != "shuffled" and (p := score.tested(name)) is not None]
    names = [f"{name_clip(name)} ({write_p(p)})" for name, p in tested if p >= 0.05]
    if not names:
        return ""
    return f" By {name_score(score.name)} it is not shown to be better than: {', '.join(names)}."


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about ``wanted`` of them."""
    if not high > low:
        margin = (abs(low) or 1.0) * 0.1
        low, high = low - margin, high + margin
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]
