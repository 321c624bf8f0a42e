"""What a new person's first minutes are worth with a model of other people.

Every way of reading goes through the same generator, noise and negative (the mean token of the
training captions). Shapes: n test windows, W scans, V voxels, L condition tokens, C their width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindvideo import distributed
from mindvideo.artefacts import begin_folder, read_note
from mindvideo.config import Recipe
from mindvideo.data.preparation import refuse_others
from mindvideo.data.store import open_stores
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.aggregate import Design, add_holm
from mindvideo.evaluate.compare import compare_runs, read_window_scores
from mindvideo.evaluate.evaluation import evaluate_windows
from mindvideo.evaluate.score import MAIN, Score
from mindvideo.evaluate.tables import read_scores, write_evaluation
from mindvideo.files import link_folder, write_json
from mindvideo.generate.clips import Shown, choose_test_windows, sample_clips
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.reconstruct import assemble_pipeline, fill_clips, open_clips
from mindvideo.keys import Key, as_digest
from mindvideo.models.encoders import encoder_arguments
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.newcomer.minutes import FirstMinutes
from mindvideo.newcomer.own_maps import VERSION, encoder_of_newcomer, start_by_ridge, train_on_minutes
from mindvideo.precision import resolve_precision, sampling_in
from mindvideo.preparing import each_person
from mindvideo.stages import Bars, Say
from mindvideo.study import Study
from mindvideo.train.features import CROPS, Features
from mindvideo.train.pretrain import fit_scale
from mindvideo.train.ridge import fit_linear_decoder
from mindvideo.train.stage import open_foundation, save_model, stage_seed
from mindvideo.train.tokens import TokenTarget
from mindvideo.train.views import AlignData

FILE = "people.json"
ARMS = {
    "none": "the others' model, with the mean of their maps on the same vertices",
    "shared": "the others' model, with maps of the new person's own",
    "scratch": "the same encoder from scratch on the same minutes",
    "ridge": "ridge regression on the same minutes",
}
TOKEN_R2 = Score(
    "token_r2", "token R²", "share of the variance of the captions' text tokens, around their training mean, that is read "
    "from the brain", "content", "captions", per_window=lambda made, true: made, low=None, is_main=True,
)  # fmt: skip
Reader = Callable[[np.ndarray], torch.Tensor]
"""FMRI (n, W, V) to conditions (n, L, C)."""


@dataclass(frozen=True)
class LeftOut:
    """A recipe of several people, and which of them the model meets last.

    ``minutes`` of scanner time are tried, 0 for none and None for all of it. With ``is_whole``,
    everything is trained on the person's minutes after the maps.
    """

    recipe: Recipe
    subject: int
    minutes: Sequence[float | None]
    is_whole: bool = False

    def require(self) -> None:
        """SettingError for a recipe that is not of several people with own maps."""
        data = self.recipe.data
        people = self.recipe.data.subjects or ()
        if len(people) < 2 or self.subject not in people:
            raise SettingError(
                f"expected --leave-out one of at least two data.subjects, found {self.subject} of {list(people) or 'none'}; "
                "give --set 'data.subjects=[1, 2, 3]' and one of these"
            )
        if self.recipe.align.encoder != "areas":
            raise SettingError(
                f"expected align.encoder=areas for maps of a new person, found {self.recipe.align.encoder}; give "
                "--set align.encoder=areas"
            )
        if data.selection != "all":
            raise SettingError(
                f"expected data.selection=all, so that nobody's voxels are chosen by repeats that a new person lacks, found "
                f"{data.selection}; give --set data.selection=all"
            )

    @property
    def others(self) -> Recipe:
        """The recipe of the others."""
        people = self.recipe.data.subjects or ()
        others = tuple(number for number in people if number != self.subject)
        if len(others) == 1:
            return each_person(self.recipe)[people.index(others[0])].model_copy(update={"baselines": ()})
        data = self.recipe.data.model_copy(update={"subjects": others})
        return self.recipe.model_copy(update={"data": data, "baselines": ()})

    @property
    def own(self) -> Recipe:
        """The recipe of the one left out, alone."""
        place = (self.recipe.data.subjects or ()).index(self.subject)
        return each_person(self.recipe)[place]

    def list_arms(self) -> list[tuple[str, float | None]]:
        """Every way of reading, with its minutes."""
        some = [minutes for minutes in self.minutes if minutes != 0]
        found: list[tuple[str, float | None]] = [("none", 0.0)] if len(some) < len(self.minutes) else []
        return found + [(arm, minutes) for minutes in some for arm in ("shared", "scratch", "ridge")]


def run_curve(asked: LeftOut, out: Path, say: Say = print, progress: Bars | None = None) -> dict[str, Any]:
    """Train the others' model, read the left-out person with every arm, write `FILE`.

    What is up to date is skipped, what was killed goes on.
    """
    asked.require()
    out.mkdir(parents=True, exist_ok=True)
    shared = Study(asked.others, out / "others")
    own = Study(asked.own, out / "newcomer")
    say("the others:")
    shared.run(until="cotrain", say=say, progress=progress)
    if asked.recipe.simulate is not None and not (own.run_dir / "simulate").exists():
        own.run_dir.mkdir(exist_ok=True)
        link_folder(shared.run_dir / "simulate", own.run_dir / "simulate")
    say(f"subject {asked.subject}, who was left out:")
    own.run(until="prepare", say=say, progress=progress)
    arms = _Arms(asked, shared, own)
    rows = []
    for arm, minutes in asked.list_arms():
        name = f"{arm}-{'all' if minutes is None else format(minutes, 'g')}"
        ran = arms.read(arm, minutes, out / name)
        say(f"{name}: {'done' if ran else 'up to date'}")
        rows.append(_row(arm, minutes, out / name))
    content = {
        "format": "mindvideo-people", "version": 1, "subject": asked.subject, "others": list(asked.others.data.people),
        "recipe": asked.recipe.name, "is_simulated": asked.recipe.simulate is not None, "arms": ARMS, "rows": rows,
        "differences": _differences(rows, out),
    }  # fmt: skip
    write_json(out / FILE, content)
    return content


def _row(arm: str, minutes: float | None, folder: Path) -> dict[str, Any]:
    scores = {name: entry.to_json() for name, entry in read_scores(folder / "evaluate" / "scores.json").items()}
    return {
        "arm": arm,
        "minutes": minutes,
        **read_note(folder / "done.json")["about"],
        "folder": folder.name,
        "scores": scores,
    }


def _differences(rows: Sequence[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The shared model against the others on the same minutes, and against itself with fewer."""
    runs = {row["folder"]: read_window_scores(out / row["folder"], row["folder"]) for row in rows}
    of_arm = {arm: [row["folder"] for row in rows if row["arm"] == arm] for arm in ARMS}
    pairs = [
        (first, second)
        for arm in ("scratch", "ridge")
        for first, second in zip(of_arm[arm], of_arm["shared"], strict=True)
    ]
    pairs += pairwise(of_arm["none"] + of_arm["shared"])
    return [{"first": a, "second": b, "scores": compare_runs(runs[a], runs[b])} for a, b in pairs]


class _Arms:
    """The parts that all arms share."""

    def __init__(self, asked: LeftOut, shared: Study, own: Study) -> None:
        self.asked = asked
        self.shared = shared
        self.own = own
        self.device = distributed.device()
        recipe = asked.own
        self.recipe = sampling_in(recipe, resolve_precision(recipe.reconstruct.precision, self.device))
        self.stores = open_stores(asked.others.data, shared.run_dir)
        self.store = open_stores(asked.own.data, own.run_dir)[0]
        theirs = self.store.shown()
        other = [name for name, what in self.stores[0].shown().items() if theirs.get(name) != what]
        refuse_others(self.stores[0], self.store.subject, other)
        self.foundation = open_foundation(recipe)
        self.features = Features(shared.run_dir, self.stores[0], self.foundation)
        windows = choose_test_windows(self.recipe, self.store, self.recipe.align.window)
        self.shown = Shown(self.recipe, self.store, *windows)
        settings = recipe.align.model_copy(update={"augmentation": "fixed"})
        self.text = self.features.text(asked.others.model_copy(update={"align": settings}))

    @cached_property
    def pipeline(self) -> MindVideoPipeline:
        """The others' model."""
        pipeline = assemble_pipeline(self.asked.others, self.shared.run_dir, self.stores, self.foundation)
        pipeline.unet.to(memory_format=torch.channels_last)
        return pipeline.to(self.device)

    @property
    def encoder(self) -> AreaEncoder:
        """The others' encoder."""
        found = self.pipeline.fmri_encoder
        assert isinstance(found, AreaEncoder)
        return found

    @cached_property
    def mean_token(self) -> torch.Tensor:
        """Mean token of the others' training captions (L, C)."""
        return TokenTarget(self.text, Windows(self.stores[0], "train", 1).captions).mean

    def key(self, arm: str, minutes: float | None) -> Key:
        """What an arm's result follows from."""
        content = self.recipe.model_dump(mode="json")
        parts = {name: content[name] for name in ("align", "reconstruct", "evaluate", "seed", "encoder")}
        studies = (("others", self.shared, "cotrain"), ("newcomer", self.own, "prepare"))
        parts["studies"] = {name: as_digest(study.key(last).digest) for name, study, last in studies}
        return Key({"version": VERSION, "arm": arm, "minutes": minutes, "is_whole": self.asked.is_whole, **parts})

    def read(self, arm: str, minutes: float | None, folder: Path) -> bool:
        """Train a way of reading, make clips and score them; False if that is done."""
        digest = self.key(arm, minutes).digest
        if read_note(folder / "done.json").get("hash") == digest:
            return False
        begin_folder(folder, digest)
        reader, about = self._prepare_arm(arm, minutes, folder)
        self._reconstruct(reader, folder, digest)
        write_json(folder / "done.json", {"hash": digest, "about": about})
        return True

    def _prepare_arm(self, arm: str, minutes: float | None, folder: Path) -> tuple[Reader, dict[str, Any]]:
        seed = stage_seed(self.recipe.seed, f"{arm} {minutes}")
        if arm == "none":
            encoder = encoder_of_newcomer(self.encoder, self.store.layout)
            return self._encoding(encoder, folder), {"used_minutes": 0.0}
        first = FirstMinutes.of(self.store, minutes)
        data = self._data(first)
        about: dict[str, Any] = {"used_minutes": first.minutes, "n_windows": len(data)}
        every = np.arange(len(data))
        if arm == "ridge":
            read = data.fmri(every).flatten(1).numpy()
            tokens = data.target.tokens(every).flatten(1).numpy()
            decoder = fit_linear_decoder(read, tokens)
            decoder.save(folder / "ridge.safetensors")
            shape = self.pipeline.condition_shape
            return lambda fmri: torch.from_numpy(decoder.predict(fmri.reshape(len(fmri), -1))).view(-1, *shape), about
        torch.manual_seed(seed)
        settings = self.recipe.align
        (scans,) = data.windows.scans
        if arm == "scratch":
            sizes = {name: self.encoder.config[name] for name in ("window", "condition_length", "condition_width")}
            own = encoder_arguments(settings.encoder, settings.dropout, settings.encoder_settings)
            scale = fit_scale(scans)
            architecture = self.recipe.encoder.model_dump()
            encoder = AreaEncoder.build([self.store.layout], sizes | scale, architecture, **own)
            if settings.token_weight > 0:
                encoder.start_at(data.target.statistics)
            train_on_minutes(encoder, data, settings, folder / "all", seed, is_whole=True)
            return self._encoding(encoder, folder), about
        encoder = encoder_of_newcomer(self.encoder, self.store.layout)
        theirs = [
            np.concatenate([store.fmri(name)[:n] for name, (_, n) in first.kept.items()]) for store in self.stores
        ]
        about["start"] = start_by_ridge(encoder, self.encoder, scans, theirs)
        share = min(1.0, math.sqrt(len(data) / len(Windows(self.stores[0], "train", settings.window))))
        train_on_minutes(encoder, data, settings, folder / "maps", seed, is_whole=False, share=share)
        if self.asked.is_whole:
            encoder.requires_grad_(True)
            train_on_minutes(encoder, data, settings, folder / "all", seed, is_whole=True, share=share)
        return self._encoding(encoder, folder), about

    def _data(self, first: FirstMinutes) -> AlignData:
        """The minutes' windows with their targets; features of the films are the others'."""
        settings = self.recipe.align
        windows = Windows(first, "train", settings.window)
        if windows.most_apart() < 2:
            raise DataError(
                f"expected at least two scenes in {first.minutes:g} minutes, found fewer; give more --minutes"
            )
        target = TokenTarget(self.text, windows.captions, settings.token_whitening)
        images = None
        if target.variance == 0.0:
            raise DataError(f"expected different captions in {first.minutes:g} minutes, found one; give more --minutes")
        if "image" in settings.loss:
            others = Windows(self.stores[0], "train", 1)
            row = {place: i for i, place in reversed([*enumerate(zip(others.segment, others.scan, strict=True))])}
            index = np.array([row[place] for place in zip(windows.segment, windows.scan, strict=True)])
            crops = CROPS if settings.crop_probability > 0 else 0
            images = self.features.images("train", crops, stage_seed(self.recipe.seed, "features"))[index]
        return AlignData(windows, target, images)

    def _encoding(self, encoder: AreaEncoder, folder: Path) -> Reader:
        """Keep an encoder in ``folder``, and read with it."""
        save_model(encoder, folder / "encoder")
        encoder.to(self.device).eval()

        def read(fmri: np.ndarray) -> torch.Tensor:
            with torch.inference_mode():
                return encoder(torch.from_numpy(fmri).to(self.device)).float().cpu()

        return read

    def _reconstruct(self, reader: Reader, folder: Path, digest: str) -> None:
        """Clips of the test windows and of other scenes' scans, and the scores of both."""
        shown = self.shown
        settings = self.recipe.reconstruct
        pipeline = self.pipeline
        tokens = reader(shown.windows.fmri(shown.chosen))
        conditions = {MAIN: tokens, "shuffled": tokens[shown.other]}
        negative = {"negative": "none"} if settings.negative == "none" else {"negative_tokens": self.mean_token[None]}

        def make(name: str, positions: np.ndarray) -> np.ndarray:
            if name not in conditions:
                return shown.make(name, positions)
            window = shown.chosen[positions]
            condition = conditions[name][positions]
            return sample_clips(pipeline, self.recipe, window, shown.shape, condition=condition, **negative)

        labels = {"truth": "what was shown", MAIN: "reconstruction", "shuffled": "fMRI of a window of another scene"}
        clips = open_clips(folder / "clips.zarr", labels, shown.shape, len(shown.chosen), digest)
        fill_clips(clips, make, settings.batch_size, None)
        self._evaluate(clips, conditions, folder / "evaluate")

    def _evaluate(self, clips: Any, conditions: dict[str, torch.Tensor], folder: Path) -> None:
        windows = self.shown.description
        design = Design.of(self.recipe, windows, self.shown.block)
        sets = {name: clips[name] for name in conditions}
        found = evaluate_windows(sets, clips["truth"], self.foundation, design)
        values = self._token_r2(conditions, [window["caption"] for window in windows])
        result = design.summarise(TOKEN_R2, values, "")
        found = replace(
            found,
            scores=add_holm({TOKEN_R2.name: result, **found.scores}),
            windows={TOKEN_R2.name: values, **found.windows},
        )
        about = {"settings": design.settings.model_dump(mode="json"), "seed": design.seed, "negative": "none"}
        write_evaluation(found, folder, windows, design.block, about)

    def _token_r2(self, conditions: dict[str, torch.Tensor], captions: list[str]) -> dict[str, np.ndarray]:
        """Each window's part in R² (n,): their mean is R²."""
        truth = self.foundation.encode_text(captions)[0].float().cpu()
        spread = float((truth - self.mean_token).square().flatten(1).sum(1).mean())
        return {
            name: (1 - (found - truth).square().flatten(1).sum(1) / spread).double().numpy()
            for name, found in conditions.items()
        }
