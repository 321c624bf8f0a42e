"""What a run's scores say, in words: which parts of the picture came from the brain, and for which there is no evidence.

An aspect counts as shown when every score of it is better than with shuffled brain activity, in part when some are;
nothing is picked by its value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mindvideo.report.read import Run, Score
from mindvideo.report.trace import Source, cite, count_of
from mindvideo.report.wording import HEADLINE_ORDER, name_clip, name_score

LEVEL = 0.05
FILE = "evaluate/scores.json"

ASPECTS = {
    "layout": r"ssim|psnr|pixel",
    "colour": r"colour|hue|attribute_colour",
    "content": r"(image|video)_\d+way|clip_|retrieval|caption|attribute_(thing|place)",
    "motion": r"motion|epe|attribute_(motion|cut)",
}
"""What a score is about, by the start of its name; scores of no aspect are in the table only."""


@dataclass(frozen=True)
class Aspect:
    """One part of the picture: the tested scores of it, and those that beat shuffled brain activity."""

    name: str
    tested: tuple[str, ...]
    beaten: tuple[str, ...]

    @property
    def state(self) -> str:
        """``yes``, ``part`` or ``no``."""
        return "yes" if self.beaten == self.tested else "part" if self.beaten else "no"


def headline_score(run: Run) -> Score | None:
    """The score the figures below the headline show, by a fixed order."""
    identification = [name for name in run.scores if re.match(r"(video|image)_\d+way", name)]
    for name in (*HEADLINE_ORDER, *identification, *run.scores):
        if name in run.scores:
            return run.scores[name]
    return None


def beats_shuffled(score: Score, level: float = LEVEL) -> bool | None:
    """Whether a score is better than the shuffled control at ``level``; None when that was not tested."""
    p, control = score.tested("shuffled"), score.controls.get("shuffled")
    if p is None or control is None or score.value is None or score.higher_is_better is None:
        return None
    is_better = score.value > control if score.higher_is_better else score.value < control
    return p < level and is_better


def is_corrected(run: Run) -> bool:
    """Whether the P-values shown are corrected for the number of scores."""
    return any(score.p_holm for score in run.scores.values())


def list_aspects(run: Run) -> list[Aspect]:
    """Aspects with at least one score tested against shuffled brain activity."""
    aspects = []
    for name, pattern in ASPECTS.items():
        found = {key: beats_shuffled(score) for key, score in run.scores.items() if re.match(pattern, key)}
        tested = tuple(key for key, beats in found.items() if beats is not None)
        if tested:
            aspects.append(Aspect(name, tested, tuple(key for key in tested if found[key])))
    return aspects


def join_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def write_title(aspects: Sequence[Aspect], is_simulated: bool) -> str:
    """The headline: what came from the brain, what only in part, and for what there is no evidence."""
    brain = "the simulated brain" if is_simulated else "the brain"
    shown, part, none = ([a.name for a in aspects if a.state == state] for state in ("yes", "part", "no"))
    if not shown and not part:
        return f"No evidence that {join_words(none)} came from {brain}." if none else ""
    if shown:
        title = f"{join_words(shown)} came from {brain}" + (f", {join_words(part)} in part" if part else "")
    else:
        title = f"{join_words(part)} came from {brain} in part"
    title += f"; for {join_words(none)} there is no evidence." if none else "."
    return title[0].upper() + title[1:]


def write_verdict(run: Run) -> tuple[str, Markup]:
    """The headline of a run and the sentences below it, as plain as the numbers allow.

    Returns
    -------
    (str, Markup)
        What the evidence says, and over how many scores it says so.
    """
    score = headline_score(run)
    if score is None:
        return "Nothing has been scored yet.", Markup(escape(run.stages["evaluate"].sentence.capitalize() + "."))
    title = write_title(list_aspects(run), run.is_simulated)
    title = title or "Whether this follows the brain is not known: the shuffled control is missing."
    tested = {name: beats for name, item in run.scores.items() if (beats := beats_shuffled(item)) is not None}
    if not tested:
        return title, Markup("No score was tested against shuffled brain activity.")
    failed = [name_score(name) for name, beats in tested.items() if not beats]
    counts = [
        count_of(number, FILE, f"scores {how}")
        for number, how in ((len(tested) - len(failed), "better than shuffled"), (len(tested), "tested"))
    ]
    corrected = "corrected for the number of scores" if is_corrected(run) else "not corrected for their number"
    text = Markup(
        f"{counts[0]} of {counts[1]} scores are better than with the brain activity of another moment at P &lt; "
    )
    text += Markup(f'<span class="level">.05</span>, {corrected}.')
    text += f" Not shown for: {', '.join(failed)}." if failed else ""
    return title, text + _unbeaten(score)


def _unbeaten(score: Score) -> Markup:
    """A sentence on what needs no brain of this window and is not shown to be worse on the headline's score."""
    names = []
    for name in score.controls:
        p = score.tested(name)
        if name != "shuffled" and p is not None and p >= LEVEL:
            names.append(Markup(f"{escape(name_clip(name))} ({cite(p, source_of_p(score, name), 'p')})"))
    if not names:
        return Markup("")
    listed = Markup(", ").join(names)
    return Markup(f" By {escape(name_score(score.name))} it is not shown to be better than: {listed}.")


def source_of_p(score: Score, control: str, run: int | None = None, file: str = FILE) -> Source:
    """Where the P-value shown for a control lies: the corrected one where the file holds it."""
    kind = "p_holm" if score.p_holm.get(control) is not None else "p"
    return Source(file, (score.name, kind, control), run=run)
