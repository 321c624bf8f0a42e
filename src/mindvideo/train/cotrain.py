"""Stage ``cotrain``: encoder and generator tuned together on {fMRI window, clip} (paper section 3.4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mindvideo import processes
from mindvideo.config import Cotrain
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import ModelError
from mindvideo.models.foundation import Foundation
from mindvideo.models.own_encoder import AnyEncoder, load_encoder
from mindvideo.models.video_unet import VideoUNet
from mindvideo.stages import StageContext
from mindvideo.train.animate import TUNED, ClipValidation, Diffusion, clip_latents
from mindvideo.train.augmentation import augment_fmri
from mindvideo.train.features import latent_features, require_width, text_features
from mindvideo.train.loop import Figures, named_trainable, train
from mindvideo.train.stage import (
    note_disabled,
    open_foundation,
    save_memory,
    save_model,
    stage_seed,
    trainable,
    training_device,
)
from mindvideo.train.tokens import TokenTarget

STAGE = "cotrain"


class CotrainTask:
    """Random training windows: the encoder's output conditions the generator on the clip that was shown.

    Parameters
    ----------
    encoder : FmriEncoder or OwnEncoder
        Trained whole.
    unet : VideoUNet
        attn1, attn2, attn_temp and norm_temp are trained.
    windows : Windows
        Of N training windows.
    latents : Tensor, (N, F, c, h, w)
    target : TokenTarget, optional
        Regressed with ``settings.token_weight``; its captions condition ``settings.caption_share`` of the windows, so
        that the generator does not forget how to read what the encoder is to say. Needed where either is above 0.
    """

    def __init__(
        self,
        encoder: AnyEncoder,
        unet: VideoUNet,
        diffusion: Diffusion,
        windows: Windows,
        latents: torch.Tensor,
        target: TokenTarget | None,
        settings: Cotrain,
        device: torch.device,
    ) -> None:
        """Move both to the device."""
        self.encoder, self.unet = encoder.to(device), unet.to(device)
        self.diffusion, self.windows, self.latents, self.target = diffusion, windows, latents, target
        self.settings, self.device = settings, device

    def parameters(self) -> dict[str, nn.Parameter]:
        """The whole encoder and the generator's attention."""
        parameters = {f"fmri_encoder.{name}": parameter for name, parameter in trainable(self.encoder).items()}
        return parameters | {f"unet.{name}": parameter for name, parameter in named_trainable(self.unet, TUNED).items()}

    def lr_of(self, name: str) -> float:
        """``encoder_lr`` for the encoder where it is set."""
        if name.startswith("fmri_encoder.") and self.settings.encoder_lr is not None:
            return self.settings.encoder_lr
        return self.settings.lr

    def _read(self, condition: torch.Tensor, index: np.ndarray, is_caption: torch.Tensor) -> torch.Tensor:
        """What the generator reads, (B, L, C) float32: the encoder's tokens, or the caption's where ``is_caption``."""
        if self.target is None or not is_caption.any():
            return condition.float()
        tokens = self.target.tokens(index).to(self.device)
        return torch.where(is_caption[:, None, None].to(self.device), tokens, condition.float())

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, Figures]:
        """Diffusion loss of one batch, with the token regression where the recipe asks for it."""
        self.encoder.train()
        self.unet.train()
        index = rng.integers(len(self.latents), size=self.settings.batch_size)
        fmri = torch.from_numpy(self.windows.fmri(index))
        fmri = augment_fmri(fmri, self.settings.sparsify, self.settings.input_noise, rng)
        own, weight = processes.rows(len(index)), processes.weight(len(index))
        is_caption = torch.from_numpy(rng.random(len(index)) < self.settings.caption_share)[own]
        condition = self.encoder(fmri[own].to(self.device))
        clean = clip_latents(self.latents, index[own], self.device)
        losses = self.diffusion.random_losses(self.unet, clean, self._read(condition, index[own], is_caption))
        self.sample_values = index[own], losses.detach()
        diffusion = losses.mean() * weight
        if self.target is None or self.settings.token_weight == 0:
            return diffusion, {"diffusion_loss": diffusion.detach()}
        token = self.target.loss(condition, index[own]) * weight
        total = diffusion + self.settings.token_weight * token
        return total, {"diffusion_loss": diffusion.detach(), "token_loss": token.detach()}


def require_voxels(encoder: AnyEncoder, store: Store, where: Path) -> None:
    """Refuse an encoder that was trained on other voxels than the store's."""
    if encoder.config.voxel_id not in (None, store.voxel_id):
        raise ModelError(
            f"expected an encoder for the {store.n_voxels} voxels of subject {store.subject}, found one for "
            f"{encoder.config.num_voxels} other voxels in {where}; run align again on this store"
        )


def run(context: StageContext) -> None:
    """Tune encoder and generator together; write ``RUN/cotrain/fmri_encoder`` and ``RUN/cotrain/unet``.

    With ``cotrain.enabled=false`` both are written as ``align`` and ``animate`` left them.

    Raises
    ------
    ModelError
        When the encoder was made for other voxels or another condition.
    """
    recipe, run_dir, folder, _ = context
    settings = recipe.cotrain
    seed = stage_seed(recipe.seed, STAGE)
    store, foundation = Store.open(run_dir / "prepare" / "store.zarr"), open_foundation(recipe)
    encoder = load_encoder(run_dir / "align" / "model")
    require_voxels(encoder, store, run_dir / "align" / "model")
    length, width = encoder.config.condition_length, encoder.config.condition_width
    require_width(foundation, length, width, str(run_dir / "align" / "model"))
    unet = VideoUNet.from_pretrained(run_dir / "animate" / "model")
    if not settings.enabled:
        note_disabled(folder)
    else:
        _train(context, store, foundation, encoder, unet, seed)
    save_model(encoder, folder / "fmri_encoder")
    save_model(unet, folder / "unet")


def _train(
    context: StageContext,
    store: Store,
    foundation: Foundation,
    encoder: AnyEncoder,
    unet: VideoUNet,
    seed: int,
) -> None:
    recipe, run_dir, folder, progress = context
    settings = recipe.cotrain
    windows, held_out = (Windows(store, split, encoder.config.window) for split in ("train", "validation"))
    latents = latent_features(run_dir, store, foundation, "train", progress=progress)
    held_out_latents = latent_features(run_dir, store, foundation, "validation", progress=progress)
    target = None
    if settings.token_weight > 0 or settings.caption_share > 0:
        text = text_features(run_dir, store, foundation, seed=stage_seed(recipe.seed, "features"), progress=progress)
        target = TokenTarget(text, list(windows.captions), recipe.align.token_whitening)
    device, diffusion = training_device(), Diffusion(foundation.scheduler_config)
    save_memory(settings, encoder, unet)
    task = CotrainTask(encoder, unet, diffusion, windows, latents, target, settings, device)
    validation = ClipValidation(diffusion, held_out_latents, seed, device)

    def validate(step: int) -> dict[str, float]:
        encoder.eval()
        return validation(unet, lambda index: encoder(torch.from_numpy(held_out.fmri(index)).to(device)).float())

    train(
        task,
        settings,
        folder,
        seed=seed,
        lr_of=task.lr_of,
        progress=progress,
        validate=validate,
        validate_every=settings.checkpoint_every,
        device=device,
    )
