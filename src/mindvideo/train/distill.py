"""Stage ``distill``: a student of the generator that samples in a few steps of one pass each (not in the paper).

The teacher is the co-trained generator under guidance. From a noised clip it takes several guided
steps; the student learns to get to the same place in one step, guidance included (Salimans and Ho,
Progressive distillation, 2022; Meng et al., On distillation of guided diffusion models, 2023).
Steps are those of DDIM on a trailing grid of times.

Shapes: N windows, B batch, W scans per window, V voxels, F frames, c h w latents, L condition
tokens, C condition width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mindvideo import distributed
from mindvideo.config import Distill, Recipe, Reconstruct
from mindvideo.data.store import open_stores
from mindvideo.data.windows import Windows
from mindvideo.errors import SettingError
from mindvideo.models.encoders import load_encoder
from mindvideo.models.generators import load_generator
from mindvideo.models.interfaces import Encoder, Generator, share_noise
from mindvideo.stages import StageContext
from mindvideo.train.animate import VALIDATION_BATCH, VALIDATION_CLIPS, Diffusion, clip_latents
from mindvideo.train.augmentation import augment_fmri
from mindvideo.train.features import Features, TextFeatures
from mindvideo.train.loop import Batch, Draw, Metrics, named_trainable, train
from mindvideo.train.stage import open_foundation, save_memory, save_model, stage_seed

STAGE = "distill"


class Ddim:
    """Deterministic DDIM between any two times of a noise schedule (Song et al. 2021, Eq. 12 with sigma 0).

    A time below 0 is the end of sampling: the schedule's least noise, or none with
    ``set_alpha_to_one``.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        config = diffusion.scheduler.config
        self.prediction, self.n_timesteps = diffusion.prediction, diffusion.n_timesteps
        self.kept = diffusion.scheduler.alphas_cumprod
        self.last = torch.ones(()) if config.get("set_alpha_to_one", False) else self.kept[0]

    def grid(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Times of a sampler of so many steps, int64 (steps,), pure noise first, and where each of its steps leads."""
        times = np.round(np.arange(self.n_timesteps, 0, -self.n_timesteps / steps)).astype(np.int64) - 1
        start = torch.from_numpy(times)
        return start, start - self.n_timesteps // steps

    def levels(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of clip and noise at times (B,), each (B, 1, 1, 1, 1)."""
        kept = self.kept.to(time.device)
        share = torch.where(time < 0, self.last.to(kept), kept[time.clamp(min=0)]).view(-1, 1, 1, 1, 1)
        return share.sqrt(), (1 - share).sqrt()

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The clip that a prediction amounts to."""
        signal, noise = self.levels(time)
        if self.prediction == "epsilon":
            return (noisy - noise * predicted) / signal
        return signal * noisy - noise * predicted if self.prediction == "v_prediction" else predicted

    def step(self, noisy: torch.Tensor, clean: torch.Tensor, time: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """From one time to another, towards a clip."""
        (signal, noise), (next_signal, next_noise) = self.levels(time), self.levels(after)
        return next_signal * clean + next_noise * (noisy - signal * clean) / noise

    def aim(self, noisy: torch.Tensor, arrived: torch.Tensor, time: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The clip towards which one step would have led where several have arrived: `step` solved for it."""
        (signal, noise), (next_signal, next_noise) = self.levels(time), self.levels(after)
        ratio = next_noise / noise
        return (arrived - ratio * noisy) / (next_signal - ratio * signal)


@dataclass
class Teacher:
    """The guided generator and how it walks from one time to another.

    Attributes
    ----------
    unet : Generator
        Frozen.
    ddim : Ddim
        Its noise schedule and steps.
    settings : Reconstruct
        Its guidance; a scale of 1 or the negative ``none`` needs no second pass.
    steps : int
        Guided steps for one of the student's.
    """

    unet: Generator
    ddim: Ddim
    settings: Reconstruct
    steps: int

    def _predict(
        self, noisy: torch.Tensor, time: torch.Tensor, condition: torch.Tensor, negative: torch.Tensor
    ) -> torch.Tensor:
        if self.settings.negative == "none" or self.settings.guidance_scale == 1:
            return self.unet(noisy, time, condition).sample.float()
        both = self.unet(noisy.repeat(2, 1, 1, 1, 1), time.repeat(2), torch.cat([negative, condition])).sample.float()
        unwanted, wanted = both.chunk(2)
        return unwanted + self.settings.guidance_scale * (wanted - unwanted)

    @torch.no_grad()
    def walk(
        self, noisy: torch.Tensor, time: torch.Tensor, after: torch.Tensor, condition: torch.Tensor,
        negative: torch.Tensor, steps: int | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The clip towards which one step from ``time`` to ``after`` would lead where the teacher arrives.

        Parameters
        ----------
        noisy : Tensor, (B, c, F, h, w) float32
        time, after : Tensor, (B,) int64
        condition, negative : Tensor, (B, L, C) float32
        steps : int, optional
            The teacher's own number where not given.
        """
        steps, at, here = steps or self.steps, noisy, time
        for number in range(1, steps + 1):
            there = time - ((time - after) * number / steps).round().long()
            at = self.ddim.step(
                at, self.ddim.clean(at, self._predict(at, here, condition, negative), here), here, there
            )
            here = there
        return self.ddim.aim(noisy, at, time, after)


@dataclass
class DistillTask:
    """Random training windows at the student's own times, conditioned on their fMRI or, sometimes, on their caption.

    The student starts as the teacher, and all of it is trained; ``latents`` are (N, F, c, h, w).
    The negative of fMRI is each person's mean window or the empty caption, as the teacher's
    settings say; that of captions is the empty one.
    """

    student: Generator
    teacher: Teacher
    encoder: Encoder
    windows: Windows
    latents: torch.Tensor
    text: TextFeatures
    settings: Distill
    device: torch.device

    def __post_init__(self) -> None:
        self.student.to(self.device)
        for frozen in (self.teacher.unet, self.encoder):
            frozen.to(self.device).eval().requires_grad_(False)
        self.row = self.text.rows(list(self.windows.captions))
        self.times, self.after = self.teacher.ddim.grid(self.settings.sampler_steps)
        people = torch.arange(len(self.windows.voxels), device=self.device)
        with torch.no_grad():
            means = np.stack([self.windows.mean_fmri(person) for person in people.tolist()])
            mean = self.encoder(torch.from_numpy(means).to(self.device), people).float()
        self.null = self.text.tokens[[self.text.row[""]]].float().to(self.device)
        is_null = self.teacher.settings.negative == "null"
        self.negative = self.null.expand(len(people), -1, -1) if is_null else mean

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The student's."""
        return named_trainable(self.student)

    def conditions(
        self, fmri: torch.Tensor, person: torch.Tensor, row: torch.Tensor, is_caption: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is wanted and what is not, (B, L, C) float32 each, of people's scans (B, W, V) or of captions by rows (B,)."""
        is_caption = is_caption[:, None, None].to(self.device)
        with torch.no_grad():
            person = person.to(self.device)
            read = self.encoder(fmri.to(self.device), person).float()
        captions = self.text.tokens[row].float().to(self.device)
        return torch.where(is_caption, captions, read), torch.where(is_caption, self.null, self.negative[person])

    def errors(
        self, noisy: torch.Tensor, node: torch.Tensor, condition: torch.Tensor, target: torch.Tensor,
        clean: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Mean squared distance from the teacher in units of v, one per clip (B,): of the student, or of ``clean``."""
        ddim, time = self.teacher.ddim, self.times[node].to(self.device)
        if clean is None:
            clean = ddim.clean(noisy, self.student(noisy, time, condition).sample.float(), time)
        return ((clean - target) / ddim.levels(time)[1]).square().flatten(1).mean(1)

    def sample(self, draw: Draw) -> Batch:
        """Scans, captions' rows and clips of some windows, with noise and a time of the student's for each."""
        index, rng = draw.rows(len(self.latents)), draw.rng
        fmri = augment_fmri(torch.from_numpy(self.windows.fmri(index)), 0.0, self.settings.input_noise, rng)
        is_caption = torch.from_numpy(rng.random(draw.size) < self.settings.caption_share)
        node = torch.from_numpy(rng.integers(len(self.times), size=draw.size))
        clean = clip_latents(self.latents, index)
        return {
            "index": index, "fmri": fmri, "row": self.row[index], "is_caption": is_caption, "node": node,
            "person": torch.from_numpy(self.windows.person[index]),
            "clean": clean, "noise": share_noise(self.student, torch.randn(clean.shape)),
        }  # fmt: skip

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """How far the student's step is from the teacher's steps, for each window."""
        self.student.train()
        noisy, times = self.noised(batch["clean"], batch["noise"], batch["node"])
        condition, negative = self.conditions(*(batch[name] for name in ("fmri", "person", "row", "is_caption")))
        target = self.teacher.walk(noisy, *times, condition, negative)
        return self.errors(noisy, batch["node"], condition, target), {}

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, node: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Clips at some of the student's times, those times, and where each of its steps leads."""
        time, after = self.times[node].to(self.device), self.after[node].to(self.device)
        signal, spread = self.teacher.ddim.levels(time)
        return signal * clean.to(self.device) + spread * noise.to(self.device), (time, after)


class DistillValidation:
    """The student's distance from the teacher on validation windows, at fixed noise, evenly over the student's times."""

    def __init__(self, task: DistillTask, windows: Windows, latents: torch.Tensor, seed: int) -> None:
        count = min(len(latents), VALIDATION_CLIPS)
        self.task, self.windows, self.latents = task, windows, latents
        self.index = np.linspace(0, len(latents) - 1, count).astype(int)
        self.node = torch.arange(count) % len(task.times)
        frames, channels, *size = latents.shape[1:]
        noise = torch.randn(count, channels, frames, *size, generator=torch.Generator().manual_seed(seed))
        self.noise = share_noise(task.student, noise)
        self.row = task.text.rows([windows.captions[i] for i in self.index])
        self._one_step: float | None = None

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """``validation_loss``, and ``validation_loss_teacher``: that of the teacher taking the student's long steps."""
        task, total = self.task, torch.zeros(2)
        task.student.eval()
        for start in range(0, len(self.index), VALIDATION_BATCH):
            part = slice(start, start + VALIDATION_BATCH)
            node = self.node[part]
            noisy, times = task.noised(clip_latents(self.latents, self.index[part]), self.noise[part], node)
            index = self.index[part]
            fmri, person = (torch.from_numpy(part) for part in (self.windows.fmri(index), self.windows.person[index]))
            is_caption = torch.zeros(len(node), dtype=torch.bool)
            condition, negative = task.conditions(fmri, person, self.row[part], is_caption)
            target = task.teacher.walk(noisy, *times, condition, negative)
            total[0] += float(task.errors(noisy, node, condition, target).sum())
            if self._one_step is None:
                long_step = task.teacher.walk(noisy, *times, condition, negative, steps=1)
                total[1] += float(task.errors(noisy, node, condition, target, long_step).sum())
        if self._one_step is None:
            self._one_step = float(total[1]) / len(self.index)
        return {"validation_loss": float(total[0]) / len(self.index), "validation_loss_teacher": self._one_step}


def check_student(recipe: Recipe) -> None:
    """SettingError for a student with a negative that is made of test scans."""
    if recipe.distill is not None and recipe.reconstruct.negative == "test_mean":
        raise SettingError(
            "expected a negative that needs no test scans to train a student with, found reconstruct.negative=test_mean; "
            "set it to train_mean, or leave the section 'distill' out"
        )


def run(context: StageContext) -> None:
    """Train the student of ``RUN/cotrain/unet`` and write ``RUN/distill/unet``.

    SettingError for a recipe without the section, what `check_student` refuses, too many steps.
    """
    recipe, run_dir, folder, progress = context
    settings = recipe.distill
    if settings is None:
        raise SettingError("expected a 'distill' section in the recipe, found none; set distill.sampler_steps=4")
    check_student(recipe)
    seed = stage_seed(recipe.seed, STAGE)
    stores, foundation = open_stores(recipe.data, run_dir), open_foundation(recipe)
    ddim = Ddim(Diffusion(foundation.scheduler_config))
    if settings.sampler_steps * settings.teacher_steps > ddim.n_timesteps:
        raise SettingError(
            f"expected distill.sampler_steps times distill.teacher_steps to be at most {ddim.n_timesteps}, found "
            f"{settings.sampler_steps} and {settings.teacher_steps}; lower one of them"
        )
    encoder = load_encoder(run_dir / "cotrain" / "fmri_encoder")
    student, unet = (load_generator(run_dir / "cotrain" / "unet") for _ in range(2))
    windows = Windows(stores, "train", encoder.config.window)
    features = Features(run_dir, stores[0], foundation, progress)
    text = features.text(recipe)
    latents = features.latents("train")[windows.film]
    save_memory(settings, student)
    teacher = Teacher(unet, ddim, recipe.reconstruct, settings.teacher_steps)
    task = DistillTask(student, teacher, encoder, windows, latents, text, settings, distributed.device())
    validate = None
    if stores[0].segments("validation"):
        held_out = Windows(stores, "validation", encoder.config.window)
        validate = DistillValidation(task, held_out, features.latents("validation")[held_out.film], seed)
    train(task, settings, folder, seed=seed, progress=progress, validate=validate)
    save_model(student, folder / "unet")
