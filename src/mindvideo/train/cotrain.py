"""Stage ``cotrain``: encoder and generator tuned together (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mindvideo import distributed
from mindvideo.config import Cotrain
from mindvideo.data.store import Store, open_stores
from mindvideo.data.windows import Windows
from mindvideo.models.encoders import load_encoder
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators import load_generator
from mindvideo.models.interfaces import Encoder, Generator
from mindvideo.stages import StageContext
from mindvideo.train.animate import ClipValidation, Diffusion, clip_latents
from mindvideo.train.augmentation import augment_fmri
from mindvideo.train.features import Features
from mindvideo.train.loop import Batch, Draw, Metrics, named_trainable, train
from mindvideo.train.stage import note_disabled, open_foundation, save_memory, save_model, stage_seed, trainable
from mindvideo.train.tokens import TokenTarget

STAGE = "cotrain"


@dataclass
class CotrainTask:
    """Random training windows: the encoder's output conditions the generator.

    ``latents`` (N, F, c, h, w) are of each window's clip. A ``target`` is regressed with
    ``settings.token_weight``; its captions condition ``settings.caption_share`` of the windows, so
    that the generator does not forget them.
    """

    encoder: Encoder
    unet: Generator
    diffusion: Diffusion
    windows: Windows
    latents: torch.Tensor
    target: TokenTarget | None
    settings: Cotrain
    device: torch.device

    def __post_init__(self) -> None:
        self.encoder.to(self.device)
        self.unet.to(self.device)
        self.may_leave_out = self.encoder.may_leave_out

    def parameters(self) -> dict[str, nn.Parameter]:
        """The whole encoder except ``logit_scale``, and the generator's attention."""
        self.encoder.logit_scale.requires_grad_(False)
        parts = {"fmri_encoder": trainable(self.encoder), "unet": named_trainable(self.unet, self.unet.trained_parts)}
        return {f"{part}.{name}": weight for part, own in parts.items() for name, weight in own.items()}

    def lr_of(self, name: str) -> float:
        """``encoder_lr`` for the encoder where it is set."""
        is_encoder = name.startswith("fmri_encoder.")
        return self.settings.encoder_lr or self.settings.lr if is_encoder else self.settings.lr

    def sample(self, draw: Draw) -> Batch:
        """Scans and clips of some windows, and which of them are conditioned on their caption."""
        settings, index = self.settings, draw.rows(len(self.latents))
        fmri = torch.from_numpy(self.windows.fmri(index))
        fmri = augment_fmri(fmri, settings.sparsify, settings.input_noise, draw.rng)
        person = torch.from_numpy(self.windows.person[index])
        batch = {"index": index, "fmri": fmri, "person": person}
        batch |= self.diffusion.draw(clip_latents(self.latents, index))
        if self.target is not None:
            is_caption = torch.from_numpy(draw.rng.random(draw.size) < settings.caption_share)
            batch |= {"tokens": self.target.tokens(index), "is_caption": is_caption}
        return batch

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Diffusion loss of each clip, with the token regression where the recipe asks for it."""
        self.encoder.train()
        self.unet.train()
        condition = self.encoder(batch["fmri"].to(self.device), batch["person"].to(self.device))
        read = condition.float()
        if self.target is not None:
            tokens, is_caption = batch["tokens"].to(self.device), batch["is_caption"].to(self.device)
            read = torch.where(is_caption[:, None, None], tokens, read)
        diffusion = self.diffusion.drawn_losses(self.unet, batch, read)
        logged = {"diffusion_loss": diffusion.detach().mean()}
        if self.target is None or self.settings.token_weight == 0:
            return diffusion, logged
        token = self.target.distances(condition, tokens)
        return diffusion + self.settings.token_weight * token, logged | {"token_loss": token.detach().mean()}


def run(context: StageContext) -> None:
    """Tune encoder and generator together; write ``RUN/cotrain/fmri_encoder`` and ``RUN/cotrain/unet``.

    With ``cotrain.enabled=false`` both are written as ``align`` and ``animate`` left them.
    ModelError when the encoder was made for other voxels.
    """
    recipe, run_dir, folder, _ = context
    stores, foundation = open_stores(recipe.data, run_dir), open_foundation(recipe)
    encoder = load_encoder(run_dir / "align" / "model")
    encoder.require_voxels([store.layout for store in stores], run_dir / "align" / "model")
    unet = load_generator(run_dir / "animate" / "model")
    if recipe.cotrain.enabled:
        _train(context, stores, foundation, encoder, unet)
    else:
        note_disabled(folder)
    save_model(encoder, folder / "fmri_encoder")
    save_model(unet, folder / "unet")


def _train(
    context: StageContext, stores: Sequence[Store], foundation: Foundation, encoder: Encoder, unet: Generator
) -> None:
    recipe, run_dir, folder, progress = context
    settings, seed = recipe.cotrain, stage_seed(recipe.seed, STAGE)
    windows = Windows(stores, "train", encoder.config.window)
    features = Features(run_dir, stores[0], foundation, progress)
    latents = features.latents("train")[windows.film]
    target = None
    if settings.token_weight > 0 or settings.caption_share > 0:
        text = features.text(recipe)
        target = TokenTarget(text, list(windows.captions), recipe.align.token_whitening)
    device, diffusion = distributed.device(), Diffusion(foundation.scheduler_config)
    save_memory(settings, encoder, unet)
    task = CotrainTask(encoder, unet, diffusion, windows, latents, target, settings, device)
    validate = None
    if stores[0].segments("validation"):
        held_out = Windows(stores, "validation", encoder.config.window)
        validation = ClipValidation(diffusion, features.latents("validation")[held_out.film], seed, device)

        def read(index: np.ndarray) -> torch.Tensor:
            parts = (torch.from_numpy(part).to(device) for part in (held_out.fmri(index), held_out.person[index]))
            return encoder(*parts).float()

        def validate(step: int) -> dict[str, float]:
            encoder.eval()
            return validation(unet, read)

    train(task, settings, folder, seed=seed, progress=progress, validate=validate)
