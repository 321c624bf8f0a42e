"""How large a study and its networks are, from the recipe and the foundation's files."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from mindvideo.atlas import area_labels, parse_areas
from mindvideo.config import Data, Optimise, Recipe
from mindvideo.data.groups import is_complete
from mindvideo.data.readers.parcels import read_labels
from mindvideo.data.store import Store, parcel_vertices, store_paths
from mindvideo.data.windows import spread_evenly
from mindvideo.errors import DataError, ModelError
from mindvideo.models.encoders import encoder_arguments, encoder_class, new_masked_brain
from mindvideo.models.foundation import embedded_kit
from mindvideo.models.generators import generator_class
from mindvideo.models.interfaces import Generator
from mindvideo.models.meter import count_parameters, count_per_item
from mindvideo.models.part_config import read_part_config
from mindvideo.models.weight_files import find_weights
from mindvideo.voxel_layout import VoxelLayout

PUBLISHED_VOXELS = 6224  # of Wen 2018's second subject by the paper's rule; used before prepare
HCP_VOXELS = 4183
USUAL_PARCELS = 1000
USUAL_TR_S, USUAL_SIZE = 2.0, 256  # of Wen 2018; for recipes that leave them to the recordings


@dataclass(frozen=True)
class PublishedPart:
    """A part of the paper's foundation."""

    place: str
    parameters: float
    config: dict[str, Any] = field(default_factory=dict)


_SD = "the subfolder of Stable Diffusion 1.5 (stable-diffusion-v1-5/stable-diffusion-v1-5)"
PUBLISHED: dict[str, PublishedPart] = {
    "vae": PublishedPart(_SD, 83.7e6, {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}),
    "unet": PublishedPart(_SD, 859.5e6, {"sample_size": 64, "cross_attention_dim": 768}),
    "scheduler": PublishedPart(_SD, 0.0),
    "tokenizer": PublishedPart(_SD, 0.0),
    "text_encoder": PublishedPart(_SD, 123.1e6, {"hidden_size": 768, "max_position_embeddings": 77}),
    "image_encoder": PublishedPart("openai/clip-vit-large-patch14", 427.6e6),
    "captioner": PublishedPart("Salesforce/blip-image-captioning-base", 247.4e6),
    "image_classifier": PublishedPart("google/vit-base-patch16-224", 86.6e6),
    "video_classifier": PublishedPart("MCG-NJU/videomae-base-finetuned-kinetics", 86.5e6),
}


@dataclass
class StudySizes:
    """Counts of a study, from its store, or assumed from the recipe."""

    n_train: int
    n_validation: int
    n_test: int
    n_runs: int
    n_volumes: int
    n_grayordinates: int
    n_voxels: int
    num_frames: int
    size: int
    n_reconstructed: int
    layouts: list[VoxelLayout] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, out: Path) -> StudySizes:
        """Sizes of a recipe that runs, or will run, in ``out``."""
        simulate = recipe.simulate
        data = recipe.data
        notes = []
        tr_s = data.tr_s or USUAL_TR_S
        if simulate is not None:
            scans = round(simulate.segment_s / tr_s)
            n_train = simulate.train_segments
            n_test = simulate.test_segments
            runs = n_train * simulate.train_runs + n_test * simulate.test_runs
            cortex = len(parse_areas(simulate.areas)) * (2 if simulate.areas == "visual" else 1)  # and as many others
            grayordinates = cortex + (31870 if simulate.subcortex else 0)
        else:
            scans = 240
            n_train = 18
            n_test = 5
            runs = 86
            grayordinates = 91282
            notes.append("assumed: 18 training and 5 test films of 240 scans, as in Wen 2018")
        known = data.k if data.selection == "top_k" else None
        if data.selection == "all" and data.source != "parcels":  # parcels are counted from their labels
            known = len(parse_areas(data.areas))
        voxels = known or PUBLISHED_VOXELS
        layouts = [_assumed_layout(data, voxels, notes)] * len(data.people)
        held = data.validation_segments
        n_windows = {"train": (n_train - held) * scans, "validation": held * scans, "test": n_test * scans}
        num_frames = round(data.fps * tr_s)
        size = data.size or USUAL_SIZE
        paths = store_paths(data, out / "prepare")
        if all(map(is_complete, paths)):
            stores = [Store.open(path) for path in paths]
            store = stores[0]
            layouts = [each.layout for each in stores]
            n_windows = {split: sum(map(store.n_scans, store.segments(split))) for split in n_windows}
            num_frames, size = store.num_frames, store.size
        elif not known and not layouts[0].parcels:
            notes.append(f"assumed: {voxels} selected voxels, as published for one subject; known after prepare")
        voxels = max(layout.num_voxels for layout in layouts)
        train, validation, test = n_windows.values()
        chosen = min(recipe.reconstruct.max_windows or test, test)
        counts = (train, validation, test, runs, scans + 5, grayordinates, voxels, num_frames, size, chosen)
        return cls(*counts, layouts, notes)

    @property
    def n_windows(self) -> int:
        """Windows of all splits."""
        return self.n_train + self.n_validation + self.n_test


def _assumed_layout(data: Data, n_voxels: int, notes: list[str]) -> VoxelLayout:
    """Voxels evenly spread over their areas, or all parcels that the labels name."""
    if data.source == "parcels":
        try:
            names = read_labels(data.own.labels)
        except DataError:  # which the refusals say
            names = tuple(map(str, range(USUAL_PARCELS)))
            notes.append(f"assumed: {USUAL_PARCELS} parcels; known from their labels")
        return VoxelLayout(len(names), None, parcel_vertices(names), 1 + np.arange(len(names)), names)
    vertex = parse_areas(data.areas)
    vertex = vertex[spread_evenly(len(vertex), n_voxels)]
    return VoxelLayout(len(vertex), None, vertex, area_labels()[vertex])


class Network(NamedTuple):
    """A network in training; a step keeps bytes alive in all and per sample."""

    parameters: float
    trainable: float
    fixed_bytes: float
    item_bytes: float

    def beside(self, other: Network) -> Network:
        """Two networks trained together, one feeding the other."""
        return Network(*map(operator.add, self, other))


class Features(NamedTuple):
    """Bytes of the frozen features that the stages keep."""

    images: float
    latents: float
    tokens: float


class Networks:
    """The recipe's networks, counted when first asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = embedded_kit() if recipe.foundation == "embedded" else Path(recipe.foundation)
        self._kept: dict[Any, Network] = {}
        text = self.config("text_encoder")
        self.length = text.get("max_position_embeddings", 77)
        self.width = text.get("hidden_size", 512)
        self.latent_factor = 2 ** (len(self.config("vae")["block_out_channels"]) - 1)
        lacking = [name for name, part in PUBLISHED.items() if part.config and not self._has(name)]
        names = ", ".join(lacking)
        self.notes = [f"assumed: {names} of the published sizes (Stable Diffusion 1.5)"] if lacking else []

    def _has(self, part: str) -> bool:
        return (self.folder / part / "config.json").is_file()

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, or the published one where the part is not there."""
        try:
            content = read_part_config(self.folder, part)
        except ModelError:
            content = PUBLISHED[part].config
        return {**content, **(content.get("text_config") or {})}

    def part_bytes(self, *parts: str) -> float:
        """Memory of frozen parts in float32; of the published sizes where they cannot be loaded."""
        total = 0.0
        for part in parts:
            try:
                files = find_weights(self.folder / part)
                total += sum(path.stat().st_size for path in files.paths) * (1 if files.variant is None else 2)
            except ModelError:  # `incomplete_foundation` says what is wrong
                total += PUBLISHED[part].parameters * 4
        return total

    def of_stage(self, stage: str, sizes: StudySizes) -> Network:
        """What a stage trains."""
        if stage == "adapt":
            return self.masked_brain(stage, sizes.layouts)
        if stage == "pretrain":
            return self.masked_brain(stage, [_assumed_layout(Data(), HCP_VOXELS, [])])
        if stage == "align":
            return self.encoder(sizes.layouts)
        unet = self.unet(sizes, is_whole=stage == "distill")
        return unet if stage in ("animate", "distill") else self.encoder(sizes.layouts).beside(unet)

    def _count(
        self, key: Any, build: Callable[[], nn.Module], inputs: Callable[[int], tuple[torch.Tensor, ...]], at: Optimise
    ) -> Network:
        """A network in training, counted near a stage's batch and in its precision."""

        def prepare(batch: int) -> Callable[[], None]:
            model, given = build().train(), inputs(batch)

            def step() -> None:
                with _autocast(at.precision):
                    result = model(*given)
                    tensor = result if isinstance(result, torch.Tensor) else getattr(result, "sample", None)
                    loss = result.loss if tensor is None else tensor.float().square().mean()
                loss.backward()

            return step

        if key not in self._kept:
            try:
                each = count_per_item(prepare, at.batch_size)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                each = 0.0, 0.0
                self.notes.append(f"not counted: what {key} keeps for a batch; shapes follow from its data ({error})")
            self._kept[key] = Network(*count_parameters(build), *each)
        return self._kept[key]

    def masked_brain(self, stage: str, layouts: list[VoxelLayout]) -> Network:
        """The masked autoencoder of ``pretrain`` or ``adapt``."""
        return self._count(
            stage,
            lambda: new_masked_brain(self.recipe.align.encoder, layouts, self.recipe.encoder.model_dump()),
            lambda batch: (torch.randn(batch, _most(layouts)),),
            getattr(self.recipe, stage),
        )

    def encoder(self, layouts: list[VoxelLayout]) -> Network:
        """The fMRI encoder, the paper's or the recipe's own."""
        settings = self.recipe.align
        sizes = {"condition_length": self.length, "condition_width": self.width}
        sizes["window"] = settings.window

        def build() -> nn.Module:
            own = encoder_arguments(settings.encoder, settings.dropout, settings.encoder_settings)
            return encoder_class(settings.encoder).build(layouts, sizes, self.recipe.encoder.model_dump(), **own)

        shape = settings.window, _most(layouts)
        return self._count("encoder", build, lambda batch: (torch.randn(batch, *shape),), settings)

    def _build_unet(self, is_whole: bool = False) -> Generator:
        chosen = generator_class(self.recipe.animate.generator)
        known = chosen._get_init_keys(chosen)
        unet = chosen(**{name: value for name, value in self.config("unet").items() if name in known})
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(is_whole or any(part in name for part in chosen.trained_parts))
        return unet

    def _unet_input(self, batch: int, pixels: int, frames: int) -> tuple[torch.Tensor, ...]:
        side = pixels // self.latent_factor
        channels = self.config("unet").get("in_channels", 4)
        condition = torch.randn(batch, self.length, self.config("unet")["cross_attention_dim"])
        return torch.randn(batch, channels, frames, side, side), torch.zeros(batch, dtype=torch.long), condition

    def unet(self, sizes: StudySizes, is_whole: bool = False) -> Network:
        """The video UNet in training: its attention (``animate``), or all of it (``distill``)."""
        return self._count(
            ("unet", is_whole),
            lambda: self._build_unet(is_whole),
            lambda batch: self._unet_input(batch, sizes.size, sizes.num_frames),
            (is_whole and self.recipe.distill) or self.recipe.animate,
        )

    def sampling_bytes(self, pixels: int, frames: int, batch: int) -> float:
        """Bytes that one pass of the generator keeps alive over a batch of clips."""

        def prepare(count: int) -> Any:
            unet = self._build_unet().eval()
            given = self._unet_input(count, pixels, frames)

            def call() -> Any:
                with torch.no_grad(), _autocast(self.recipe.reconstruct.precision):
                    return unet(*given).sample

            return call

        once, each = count_per_item(prepare)
        return once + batch * each

    def features(self, sizes: StudySizes) -> Features:
        """Frozen features of training and validation windows."""
        windows = sizes.n_train + sizes.n_validation
        tokens = 2.0 * windows * self.length * self.width
        images = 4.0 * windows * sizes.num_frames * self.width if "image" in self.recipe.align.loss else 0.0
        side = sizes.size // self.latent_factor
        latents = 2.0 * windows * sizes.num_frames * self.config("vae").get("latent_channels", 4) * side**2
        return Features(images, latents, tokens)


def _most(layouts: list[VoxelLayout]) -> int:
    return max(layout.num_voxels for layout in layouts)


def _autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
