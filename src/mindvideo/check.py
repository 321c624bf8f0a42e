"""Before a study starts: what is missing, and what every stage will need on this machine.

Networks are counted on fake tensors (`mindvideo.models.meter`), the machine's rates are measured for about a second, and
everything is said to be the estimate it is. Nothing is downloaded, here or anywhere: all weights are local files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from mindvideo.config import Optimise, Recipe, as_sampled
from mindvideo.models.meter import Machine, Work, measure_machine
from mindvideo.precision import resolve_precisions
from mindvideo.preflight import refusals, required_parts
from mindvideo.sizing import PUBLISHED, Networks, StudySizes

# What a stage's process takes beyond networks and arrays: libraries, the allocator's reserve; seen with the demo.
PROGRAM_BYTES = 6e8


@dataclass(frozen=True)
class Need:
    """Estimate for one stage: bytes of memory and disk, seconds, and what weighs most."""

    stage: str
    memory_bytes: float
    disk_bytes: float
    seconds: float
    what: str

    @property
    def time(self) -> str:
        """The seconds in a unit that reads well."""
        for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
            if self.seconds >= 2 * length:
                return f"{self.seconds / length:.1f} {unit}"
        return f"{self.seconds:.0f} s"


@dataclass
class Found:
    """What `check_recipe` found: estimates, remarks and advice, and what is missing (one sentence each)."""

    needs: list[Need] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def check_recipe(recipe: Recipe, out: Path) -> Found:
    """Look a study over before it starts.

    Parameters
    ----------
    recipe : Recipe
    out : Path
        The run folder, or the folder it will lie in; what is prepared there already is used for the sizes.
    """
    found = Found()
    found.missing = [str(error) for error in refusals(recipe)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = resolve_precisions(recipe, device)
    sizes, networks = StudySizes.of(recipe, out), Networks(recipe)
    machine = measure_machine(device)
    found.lines += [*sizes.notes, *networks.notes]
    found.needs = list(_estimate(recipe, sizes, networks, machine))
    found.lines += _downloads(recipe)
    found.lines += list(_advice(recipe, found.needs, networks, sizes, out, device))
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine.flops.items())
    found.lines.append(
        f"estimates: operations and activations counted on {device.type}, times from this machine's rates with nothing "
        f"else running ({rates}, {machine.moved_bytes / 1e9:.1f} GB/s); times come out two to three times too short, see docs/scale.md"
    )
    return found


def _downloads(recipe: Recipe) -> list[str]:
    """Where the foundation's missing parts are published, and how large they are there."""
    folder = Path(recipe.foundation)
    lacking = [
        part for part in required_parts(recipe) if recipe.foundation != "embedded" and not (folder / part).is_dir()
    ]
    lines = ["downloads: none, now or while it runs; weights are read from local files only"]
    if lacking:
        total = sum(PUBLISHED[part].parameters * 4 for part in lacking)
        places = "; ".join(f"{part}: {PUBLISHED[part].place}" for part in lacking)
        lines.append(f"to be fetched by you for the paper's parts, about {total / 1e9:.1f} GB in float32 – {places}")
    return lines


def _estimate(recipe: Recipe, sizes: StudySizes, networks: Networks, machine: Machine) -> Iterator[Need]:
    base = float(psutil.Process().memory_info().rss) + PROGRAM_BYTES
    scans = float(sizes.n_windows * sizes.n_voxels * 4)
    if recipe.simulate is not None:
        values = sizes.n_recorded_values
        what = f"{sizes.n_runs} recordings of {sizes.n_volumes} x {sizes.n_grayordinates}"
        yield Need("simulate", base + 6e8, 5.7 * values, values * sizes.SIMULATE_S, what)
    captions = 0.0
    if recipe.data.captions == "blip":
        captions = machine.seconds(Work(flops=sizes.n_frames * networks.frame_flops("captioner")), "fp32")
    frames_disk = float(sizes.n_frames * sizes.size**2 * 3)
    prepared = frames_disk + sizes.n_recorded_voxels * 4 + scans
    read_s = sizes.n_recorded_values * sizes.PREPARE_S
    yield Need("prepare", base + 12.0 * sizes.n_volumes * sizes.n_grayordinates + networks.part_bytes("captioner", recipe),
               prepared, read_s + captions, f"{sizes.n_frames} frames of {sizes.size} x {sizes.size} pixels")  # fmt: skip
    if recipe.pretrain.enabled and recipe.pretrain.weights is None:
        yield _training("pretrain", recipe.pretrain, base, networks.of_stage("pretrain", sizes), machine, 0.0)
    if recipe.adapt.enabled:
        yield _training("adapt", recipe.adapt, base, networks.of_stage("adapt", sizes), machine, 2 * scans)
    features = networks.features(sizes)
    encoder, unet = networks.encoder(sizes.n_voxels), networks.unet(sizes)
    align = _training("align", recipe.align, base, encoder, machine, scans + features.align_bytes)
    first = machine.seconds(Work(flops=features.align_flops), "fp32")
    frozen = networks.part_bytes("text_encoder") + networks.part_bytes("image_encoder")
    yield Need(
        "align", align.memory_bytes + frozen, align.disk_bytes + features.align_bytes, align.seconds + first, align.what
    )
    if recipe.animate.enabled:
        animate = _training("animate", recipe.animate, base, unet, machine, features.latent_bytes)
        first = machine.seconds(features.latent_work, "fp32")
        frozen = networks.part_bytes("vae") + networks.part_bytes("text_encoder") + networks.part_bytes("unet")
        yield Need("animate", animate.memory_bytes + frozen, animate.disk_bytes + features.latent_bytes,
                   animate.seconds + first, animate.what)  # fmt: skip
    if recipe.cotrain.enabled:
        both = encoder.beside(unet)
        held = scans + features.latent_bytes + features.token_bytes
        yield _training("cotrain", recipe.cotrain, base, both, machine, held)
    if recipe.distill is not None:
        yield _distill(recipe, sizes, networks, machine, base + scans + features.latent_bytes + features.token_bytes)
    yield from _after_training(as_sampled(recipe), sizes, networks, machine, base)


def _training(stage: str, settings: Optimise, base: float, network: Any, machine: Machine, data_bytes: float) -> Need:
    """A stage that trains: weights, Adam's two moments, the average, and what one micro-batch keeps alive."""
    work = network.fixed.scaled(network.per_item, settings.batch_size)
    copies = 2 + (settings.ema_decay is not None)
    memory = base + data_bytes + 4.0 * network.parameters + 4.0 * copies * network.trainable + work.peak_bytes
    optimiser = Work(moved_bytes=4.0 * (6 + 2 * (settings.ema_decay is not None)) * network.trainable)
    step = settings.accumulate * machine.seconds(work, settings.precision) + machine.seconds(optimiser, "fp32")
    disk = 4.0 * network.parameters + 4.0 * (1 + copies) * network.trainable
    what = (
        f"{settings.steps:,} steps of {settings.accumulate * settings.batch_size}, "
        f"{network.trainable / 1e6:,.1f} of {network.parameters / 1e6:,.1f} million weights train"
    )
    return Need(stage, memory, disk, step * settings.steps, what)


def _distill(recipe: Recipe, sizes: StudySizes, networks: Networks, machine: Machine, base: float) -> Need:
    """The student's training, beside which the frozen teacher takes its guided steps."""
    settings, sampling = recipe.distill, recipe.reconstruct
    assert settings is not None
    need = _training("distill", settings, base, networks.of_stage("distill", sizes), machine, 0.0)
    teacher = networks.sampler(sizes.size, sizes.num_frames)
    is_guided = sampling.negative != "none" and sampling.guidance_scale != 1
    walk = teacher.fixed.scaled(teacher.per_item, settings.batch_size * (1 + is_guided))
    passes = settings.steps * settings.accumulate * settings.teacher_steps
    frozen = 4.0 * (networks.unet(sizes).parameters + networks.encoder(sizes.n_voxels).parameters)
    return replace(need, memory_bytes=need.memory_bytes + frozen,
                   seconds=need.seconds + passes * machine.seconds(walk, settings.precision))  # fmt: skip


def _after_training(
    recipe: Recipe, sizes: StudySizes, networks: Networks, machine: Machine, base: float
) -> Iterator[Need]:
    settings, n = recipe.reconstruct, sizes.n_reconstructed
    sampled = ["reconstruction", *(name for name in settings.controls if name in ("shuffled", "mean", "caption"))]
    is_guided = settings.negative != "none" and settings.guidance_scale != 1
    passes = sum(2 if is_guided and name != "mean" else 1 for name in sampled)
    pixels = settings.size or sizes.size
    frames = settings.num_frames or sizes.num_frames
    sampler = networks.sampler(pixels, frames)
    one = sampler.fixed.scaled(sampler.per_item, settings.batch_size)
    per_clip = machine.seconds(one, settings.precision) / settings.batch_size
    decoding = machine.seconds(networks.decode(pixels), settings.precision) * frames * n * len(sampled)
    weights = 4.0 * (networks.unet(sizes).parameters + networks.encoder(sizes.n_voxels).parameters)
    peak = 2 * one.peak_bytes if is_guided else one.peak_bytes
    names = 2 + len(settings.controls)
    clip_bytes = float(n * frames * pixels**2 * 3)
    seconds = passes * n * settings.steps * per_clip + decoding
    whole = base + weights + networks.part_bytes("vae") + networks.part_bytes("text_encoder") + peak
    yield Need("reconstruct", whole, weights + names * clip_bytes, seconds,
               f"{len(sampled)} x {n} clips, {settings.steps} steps")  # fmt: skip
    flops = frames * networks.frame_flops("image_classifier") + networks.frame_flops("video_classifier")
    judged = machine.seconds(Work(flops=names * n * flops), "fp32")
    classifiers = networks.part_bytes("image_classifier") + networks.part_bytes("video_classifier")
    yield Need("evaluate", base + classifiers + names * clip_bytes, 4e6, judged, f"{names} x {n} clips classified")
    encoder = networks.encoder(sizes.n_voxels)
    looks = min(recipe.explain.max_windows, sizes.n_test) * (sizes.n_voxels // recipe.encoder.patch_size + 50)
    seconds = machine.seconds(Work(flops=looks * encoder.per_item.flops / 3), "fp32")
    memory = (
        base + 4.0 * encoder.parameters + networks.part_bytes("text_encoder") + networks.part_bytes("image_encoder")
    )
    yield Need("explain", memory, 2e7, seconds, f"{looks:,} windows encoded with something silenced")
    yield Need("report", base + 5e8, names * clip_bytes / 10, 10.0, "one page")


def _advice(
    recipe: Recipe, needs: list[Need], networks: Networks, sizes: StudySizes, out: Path, device: torch.device
) -> Iterator[str]:
    """What does not fit here, and which settings change that."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free, wanted = shutil.disk_usage(place).free, sum(need.disk_bytes for need in needs)
    verdict = "fits" if wanted < free else "does not fit: free some space, choose another --out, or a smaller data.size"
    yield f"disk: about {wanted / 2**30:.1f} GiB of {free / 2**30:.1f} free at {place}; {verdict}"
    room = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    most = max(needs, key=lambda need: need.memory_bytes)
    yield f"memory: at most {most.memory_bytes / 2**30:.1f} GiB ({most.stage}) of {room / 2**30:.1f} available"
    for need in needs:
        if need.memory_bytes > room:
            yield f"{need.stage} does not fit: {_smaller(need, room, recipe, networks, sizes)}"


def _smaller(need: Need, room: float, recipe: Recipe, networks: Networks, sizes: StudySizes) -> str:
    settings = getattr(recipe, need.stage, None)
    if need.stage == "reconstruct":
        return "--set reconstruct.batch_size=1 --set reconstruct.precision=bf16, or a smaller --size"
    if not isinstance(settings, Optimise):
        return "a machine with more memory, or fewer pixels (data.size)"
    network = networks.of_stage(need.stage, sizes)
    fixed = need.memory_bytes - settings.batch_size * network.per_item.peak_bytes
    fitting = int((room - fixed) / max(network.per_item.peak_bytes, 1.0))
    advice = []
    if fitting >= 2:
        total = settings.batch_size * settings.accumulate
        advice.append(
            f"--set {need.stage}.batch_size={fitting} --set {need.stage}.accumulate={-(-total // fitting)} "
            f"({network.per_item.peak_bytes / 2**30:.2f} GiB a sample)"
        )
        if need.stage == "align":
            advice.append("(the contrastive loss then compares within the smaller batch)")
    if getattr(settings, "gradient_checkpointing", True) is False:
        advice.append(f"--set {need.stage}.gradient_checkpointing=true")
    if settings.precision == "fp32":
        advice.append(f"--set {need.stage}.precision=bf16")
    if fitting < 2:
        advice.append(f"its weights and optimiser alone take {fixed / 2**30:.1f} GiB: a smaller network or more memory")
    return ", ".join(advice)
