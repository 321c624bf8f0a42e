"""What a run's scores say, in words: what came from the brain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from markupsafe import Markup, escape

from mindvideo.evaluate.score import FAMILIES, LEVEL, ScoreResult
from mindvideo.report.plots import Strip, draw_strips
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, count_of
from mindvideo.report.wording import join_words, write, write_percent

FILE = "evaluate/scores.json"
ABOUT = "evaluate/evaluation.json"


@dataclass(frozen=True)
class Aspect:
    """One part of the picture and its scores that were tested against shuffled brain activity."""

    name: str
    tested: tuple[ScoreResult, ...]

    @property
    def beaten(self) -> tuple[ScoreResult, ...]:
        """Scores that are from the brain."""
        return tuple(score for score in self.tested if score.from_brain)

    @property
    def better_baselines(self) -> dict[str, list[ScoreResult]]:
        """Baselines that are better still, and by which scores."""
        return list_better(self.beaten)

    @property
    def state(self) -> str:
        """``yes`` where every score is from the brain and above the baselines."""
        is_whole = len(self.beaten) == len(self.tested) and not self.better_baselines
        return "yes" if is_whole else "part" if self.beaten else "no"


def list_better(scores: Sequence[ScoreResult]) -> dict[str, list[ScoreResult]]:
    """Baselines that are better than the reconstruction, and by which of these scores."""
    found: dict[str, list[ScoreResult]] = {}
    for score in scores:
        for name in score.better_baselines:
            found.setdefault(name, []).append(score)
    return found


def list_aspects(run: Run) -> list[Aspect]:
    """Aspects with at least one score tested against shuffled brain activity."""
    tested = [score for score in run.scores.values() if score.from_brain is not None]
    aspects = [Aspect(name, tuple(score for score in tested if score.family == name)) for name in FAMILIES]
    return [aspect for aspect in aspects if aspect.tested]


def list_tested(run: Run) -> list[ScoreResult]:
    """Every score of these aspects, in their order."""
    return [score for aspect in list_aspects(run) for score in aspect.tested]


def list_known_ways(scores: Sequence[ScoreResult]) -> list[float]:
    """How far scores come from shuffled (0) to caption (1), where known."""
    return [score.way_to_caption for score in scores if score.way_to_caption is not None]


def count_shown(tested: Sequence[ScoreResult], source: Source) -> list[Markup]:
    """How many of these scores are from the brain, and how many they are."""
    counts = {"better than shuffled": sum(bool(score.from_brain) for score in tested), "tested": len(tested)}
    return [cite(n, replace(source, derived=f"scores {how}"), text=str(n)) for how, n in counts.items()]


def write_title(run: Run, aspects: Sequence[Aspect]) -> str:
    """The headline: what came from the brain, what in part, and what did not."""
    brain = "the simulated brain" if run.is_simulated else "the brain"
    shown, part, none = ([a for a in aspects if a.state == state] for state in ("yes", "part", "no"))
    named = join_words([aspect.name for aspect in none])
    if not shown and not part:
        return f"No evidence that {named} came from {brain}." if none else ""
    limits = {a.name: join_words([run.clip_set(name).label for name in a.better_baselines]) for a in part}
    partly = join_words([f"{name} (better still: {names})" if names else name for name, names in limits.items()])
    if shown:
        title = f"{join_words([aspect.name for aspect in shown])} came from {brain}"
        title += f", {partly} in part" if part else ""
    else:
        title = f"{partly} came from {brain} in part"
    return (title[0].upper() + title[1:]) + (f"; for {named} there is no evidence." if none else ".")


def write_verdict(run: Run) -> tuple[str, Markup]:
    """The headline of a run, and the sentence below it."""
    if not run.scores:
        return "Nothing has been scored yet.", Markup(escape(run.stages["evaluate"].sentence.capitalize() + "."))
    aspects = list_aspects(run)
    title = write_title(run, aspects)
    if not aspects:
        title = "Whether this follows the brain is not known: the shuffled control is missing."
        return title, Markup("No score was tested against shuffled brain activity.")
    tested = list_tested(run)
    counts = count_shown(tested, Source(FILE))
    text = Markup(
        f"{counts[0]} of {counts[1]} scores are better than with the brain activity of another moment at P &lt; "
        '<span class="level">.05</span> after Holm’s correction over the scores'
    )
    for name, scores in list_better([score for score in tested if score.from_brain]).items():
        count = count_of(len(scores), FILE, f"scores by which {name} is better still")
        few = escape(join_words([score.label for score in scores]))
        words = few if len(scores) < 4 else Markup("{} of them").format(count)
        text += Markup("; by {} the {}, which needs no brain, is better still").format(words, run.clip_set(name).label)
    text += "."
    if run.smallest_p is not None:
        smallest = cite(run.smallest_p, Source(ABOUT, ("smallest_p",)), "short")
        text += Markup(" With these blocks and permutations no corrected P can be below {}").format(smallest)
        text += ": nothing can be shown with so short a test." if run.smallest_p >= LEVEL else "."
    return title, text


def draw_way(run: Run) -> Markup:
    """Every tested score on its way from shuffled brain to true caption."""
    strips = []
    for aspect in list_aspects(run):
        ways = {score.name: way for score in aspect.tested if (way := score.way_to_caption) is not None}
        counts = [
            Markup("<tspan{}>{}</tspan>").format(
                Source(FILE, derived=f"scores of {aspect.name} {how}").attributes(n), n
            )
            for n, how in ((len(aspect.beaten), "better than shuffled"), (len(aspect.tested), "tested"))
        ]
        text = Markup(f"{counts[0]} of {counts[1]} shown")
        values = {
            f"{run.scores[name].label}: {write_percent(way)}": (way, kind_of(run.scores[name]))
            for name, way in ways.items()
        }
        strips.append(Strip(aspect.name, values, median(ways.values()) if ways else None, text))
    if not any(strip.values for strip in strips):
        return Markup("")
    said = "; ".join(f"{strip.label}: median {write(strip.middle, 'percent')}" for strip in strips)
    return draw_strips(f"Way from shuffled brain (0 %) to true caption (100 %). {said}", strips)


def kind_of(score: ScoreResult) -> str:
    """Full where a score is from the brain, hollow where that was not shown."""
    return "main" if score.from_brain else "open"


def write_way(run: Run) -> Markup:
    """The median of these ways, in one sentence."""
    known = list_known_ways(list_tested(run))
    if not known:
        return Markup("")
    source = Source(FILE, derived="median way to caption")
    return Markup(
        "The median score comes {} of the way from another moment’s brain activity to the film’s own caption."
    ).format(cite(median(known), source, "percent"))
