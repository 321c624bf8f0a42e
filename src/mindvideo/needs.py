"""What a study lacks, and the memory and disk that each of its stages will need on this machine.

Memory is counted on fake tensors (`mindvideo.models.meter`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from mindvideo import distributed
from mindvideo.config import Optimise, Recipe, as_sampled
from mindvideo.data.groups import is_complete
from mindvideo.data.store import store_paths
from mindvideo.precision import resolve_precisions
from mindvideo.preflight import refusals, required_parts
from mindvideo.sizing import PUBLISHED, Network, Networks, StudySizes
from mindvideo.stages import STAGES

# A process beyond its networks and arrays: libraries, the allocator's reserve; measured with the demo.
PROGRAM_BYTES = 6e8


@dataclass(frozen=True)
class Need:
    """Bytes of memory and disk for one stage, and what weighs most."""

    stage: str
    memory_bytes: float
    disk_bytes: float
    what: str


class CheckResult(NamedTuple):
    """Needs, remarks and advice, and what is missing."""

    needs: list[Need]
    lines: list[str]
    missing: list[str]


def check_recipe(recipe: Recipe, out: Path) -> CheckResult:
    """Look a study over before it starts.

    Parameters
    ----------
    out : Path
        The run folder, or the folder that will hold it; sizes are those of a store prepared there.
    """
    device = distributed.device()
    stores = store_paths(recipe.data, out / "prepare")
    missing = [str(error) for error in refusals(recipe, stores=stores if all(map(is_complete, stores)) else ())]
    needed = Needs(resolve_precisions(recipe, device), out)
    needs = list(needed.of_stages())
    lines = [*needed.sizes.notes, *needed.networks.notes, *_downloads(recipe)]
    lines += _advice(needed, needs, out, device)
    lines.append("memory counts each stage's networks, arrays and libraries; measured peaks are in docs/scale.md")
    return CheckResult(needs, lines, missing)


def _downloads(recipe: Recipe) -> list[str]:
    """Where the foundation's missing parts are published, and how large they are there."""
    folder = Path(recipe.foundation)
    parts = required_parts(recipe) if recipe.foundation != "embedded" else ()
    lacking = [part for part in parts if not (folder / part).is_dir()]
    lines = ["downloads: none, now or while it runs; weights are read from local files only"]
    if lacking:
        total = sum(PUBLISHED[part].parameters * 4 for part in lacking)
        places = "; ".join(f"{part}: {PUBLISHED[part].place}" for part in lacking)
        lines.append(f"to be fetched by you for the paper's parts, about {total / 1e9:.1f} GB in float32 – {places}")
    return lines


class Needs:
    """What each stage of a recipe needs."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe = recipe
        self.sizes = StudySizes.of(recipe, out)
        self.networks = Networks(recipe)
        self.base = float(psutil.Process().memory_info().rss) + PROGRAM_BYTES
        self.people = len(recipe.data.people)
        self.scans = float(self.people * self.sizes.n_windows * self.sizes.n_voxels * 4)
        sampling = as_sampled(recipe).reconstruct
        frames = sampling.num_frames or self.sizes.num_frames
        pixels = sampling.size or self.sizes.size
        self.clip_set = float(self.sizes.n_reconstructed * frames * pixels**2 * 3)
        self.clips = (2 + len(sampling.controls)) * self.clip_set

    @property
    def _times(self) -> str:
        return f"{self.people} people x " if self.people > 1 else ""

    def of_stages(self) -> Iterator[Need]:
        """The stages that will run, in order."""
        for name, stage in STAGES.items():
            settings = getattr(self.recipe, name, None)
            is_off = getattr(settings, "enabled", True) is False or getattr(settings, "weights", None) is not None
            if not (is_off or (stage.optional and settings is None)):
                yield self._training(name) if stage.trains else getattr(self, f"_{name}")()

    def _simulate(self) -> Need:
        sizes = self.sizes
        subjects = self.recipe.simulate.subjects if self.recipe.simulate else 1
        what = f"{subjects * sizes.n_runs} recordings of {sizes.n_volumes} x {sizes.n_grayordinates}"
        values = float(subjects * sizes.n_runs * sizes.n_volumes * sizes.n_grayordinates)
        return Need("simulate", self.base + 6e8, 5.7 * values, what)

    def _prepare(self) -> Need:
        sizes = self.sizes
        frames = sizes.n_windows * sizes.num_frames
        captioner = self.networks.part_bytes("captioner") if self.recipe.data.captions == "blip" else 0.0
        times = self.people if self.recipe.data.source == "published" else 1  # else linked
        runs = self.people * sizes.n_runs * sizes.n_volumes * sizes.n_voxels * 4
        disk = times * frames * sizes.size**2 * 3.0 + runs + self.scans
        memory = self.base + 12.0 * sizes.n_volumes * sizes.n_grayordinates + captioner
        return Need("prepare", memory, disk, f"{frames} frames of {sizes.size} x {sizes.size} pixels")

    def _training(self, stage: str) -> Need:
        """Weights, Adam's moments, averaged weights, and what a micro-batch keeps alive."""
        settings: Optimise = getattr(self.recipe, stage)
        network = self.network(stage)
        (held, kept, frozen) = self._around(stage)
        copies = 2 + (settings.ema_decay is not None)
        weights = 4.0 * network.parameters + 4.0 * copies * network.trainable
        batch = network.fixed_bytes + settings.batch_size * network.item_bytes
        what = (
            f"{settings.steps:,} steps of {settings.accumulate * settings.batch_size}, "
            f"{network.trainable / 1e6:,.1f} of {network.parameters / 1e6:,.1f} million weights train"
        )
        return Need(stage, self.base + held + frozen + weights + batch, kept + weights + 4.0 * network.trainable, what)

    def network(self, stage: str) -> Network:
        """What a stage trains."""
        return self.networks.of_stage(stage, self.sizes)

    def _around(self, stage: str) -> tuple[float, float, float]:
        """Bytes of a stage's arrays in memory, of those on disk, and of frozen networks."""
        features = self.networks.features(self.sizes)
        frozen = self.networks.part_bytes
        if stage == "adapt":
            return self.scans, 0.0, 0.0
        if stage == "align":
            kept = features.tokens + features.images
            held = self.scans + features.tokens + self.people * features.images
            return held, kept, frozen("text_encoder", "image_encoder")
        if stage == "animate":
            return features.latents, features.latents, frozen("vae", "text_encoder", "unet")
        if stage in ("cotrain", "distill"):
            teacher = 4.0 * self.network("cotrain").parameters if stage == "distill" else 0.0
            return self.scans + self.people * features.latents + features.tokens, 0.0, teacher
        return 0.0, 0.0, 0.0

    def _reconstruct(self) -> Need:
        settings = as_sampled(self.recipe).reconstruct
        sizes = self.sizes
        frames = settings.num_frames or sizes.num_frames
        pixels = settings.size or sizes.size
        passes = 1 if settings.negative == "none" or settings.guidance_scale == 1 else 2
        alive = passes * self.networks.sampling_bytes(pixels, frames, settings.batch_size)
        weights = 4.0 * self.network("cotrain").parameters
        memory = self.base + self.scans + weights + self.networks.part_bytes("vae", "text_encoder") + alive
        sampled = 1 + len({"shuffled", "mean", "caption"} & set(settings.controls))
        what = f"{self._times}{sampled} x {sizes.n_reconstructed} clips, {settings.steps} steps"
        return Need("reconstruct", memory, weights + self.people * self.clips, what)

    def _evaluate(self) -> Need:
        classifiers = self.networks.part_bytes("image_classifier", "video_classifier")
        what = f"{self._times}{self.sizes.n_reconstructed} clips of each set classified"
        others = 2 * self.clip_set if self.people > 1 else 0.0  # another person's
        return Need("evaluate", self.base + classifiers + self.clips + others, self.people * 4e6, what)

    def _explain(self) -> Need:
        encoder = 4.0 * self.networks.encoder(self.sizes.layouts).parameters
        windows = min(self.recipe.explain.max_windows, self.sizes.n_test)
        memory = self.base + self.scans + encoder + self.networks.part_bytes("text_encoder", "image_encoder")
        what = f"{self._times}{windows} windows encoded with one part silenced at a time"
        return Need("explain", memory, self.people * 2e7, what)

    def _report(self) -> Need:
        return Need("report", self.base + 5e8, self.people * self.clips / 10, "one page")


def _advice(needed: Needs, needs: list[Need], out: Path, device: torch.device) -> Iterator[str]:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    wanted = sum(need.disk_bytes for need in needs)
    verdict = "fits" if wanted < free else "does not fit: free some space, choose another --out, or a smaller data.size"
    yield f"disk: about {wanted / 2**30:.1f} GiB of {free / 2**30:.1f} free at {place}; {verdict}"
    room = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    most = max(needs, key=lambda need: need.memory_bytes)
    yield f"memory: at most {most.memory_bytes / 2**30:.1f} GiB ({most.stage}) of {room / 2**30:.1f} available"
    for need in needs:
        if need.memory_bytes > room:
            yield f"{need.stage} does not fit: {_smaller(need, room, needed)}"


def _smaller(need: Need, room: float, needed: Needs) -> str:
    settings = getattr(needed.recipe, need.stage, None)
    if need.stage == "reconstruct":
        return "--set reconstruct.batch_size=1 --set reconstruct.precision=bf16, or a smaller --size"
    if not isinstance(settings, Optimise):
        return "a machine with more memory, or fewer pixels (data.size)"
    each = needed.network(need.stage).item_bytes
    fixed = need.memory_bytes - settings.batch_size * each
    fitting = int((room - fixed) / max(each, 1.0))
    advice = []
    if fitting >= 2:
        total = settings.batch_size * settings.accumulate
        advice.append(
            f"--set {need.stage}.batch_size={fitting} --set {need.stage}.accumulate={-(-total // fitting)} "
            f"({each / 2**30:.2f} GiB a sample)"
        )
        if need.stage == "align":
            advice.append("(the contrastive loss then compares within the smaller batch)")
    if not settings.gradient_checkpointing:
        advice.append(f"--set {need.stage}.gradient_checkpointing=true")
    if settings.precision == "fp32":
        advice.append(f"--set {need.stage}.precision=bf16")
    if fitting < 2:
        advice.append(f"its weights and optimiser alone take {fixed / 2**30:.1f} GiB: a smaller network or more memory")
    return ", ".join(advice)
