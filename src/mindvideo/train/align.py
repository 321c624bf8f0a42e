"""Stage ``align``: fMRI windows are aligned with frozen CLIP (paper Eq. 3, docs/method.md, The encoder).

Shapes: B batch, N windows, W scans per window, V voxels, F frames, L condition tokens, C condition
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindvideo import distributed
from mindvideo.config import Align, Recipe
from mindvideo.data.store import Store, open_stores
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.models.encoders import encoder_arguments, encoder_class, load_masked_brain
from mindvideo.models.foundation import Foundation
from mindvideo.models.interfaces import Encoder
from mindvideo.stages import StageContext
from mindvideo.train.adapt import pretrained_model
from mindvideo.train.augmentation import augment_fmri
from mindvideo.train.features import CROPS, Features, Split, TextFeatures, note_long_captions
from mindvideo.train.loop import Batch, Draw, Metrics, train
from mindvideo.train.pretrain import fit_scale
from mindvideo.train.ridge import ALPHAS, LinearDecoder
from mindvideo.train.stage import note_disabled, open_foundation, save_memory, save_model, stage_seed, trainable
from mindvideo.train.thesaurus import open_thesaurus
from mindvideo.train.token_regression import TokenRegression, linear_references
from mindvideo.train.tokens import TokenTarget
from mindvideo.train.views import AlignData, DrawnViews, FixedViews, Views

STAGE = "align"
MOST_LOGIT_SCALE = 100.0
VALIDATION_BATCH = 32


def clip_losses(first_BC: torch.Tensor, second_BC: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Symmetric cross-entropy of each row (B,): the CLIP loss (Radford et al. 2021; paper Eq. 3)."""
    logits = scale * F.normalize(first_BC, dim=-1) @ F.normalize(second_BC, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    each = (F.cross_entropy(way, labels, reduction="none") for way in (logits, logits.T))
    return sum(each, logits.new_zeros(len(logits))) / 2


def contrastive_losses(
    fmri_BC: torch.Tensor,
    text_BC: torch.Tensor,
    image_BC: torch.Tensor | None,
    scale: torch.Tensor | float,
    variant: Literal["text_image", "text", "image", "none"],
) -> torch.Tensor:
    """Eq. 3 of each row (B,): the mean of the fMRI-text and fMRI-image losses, or one of them."""
    if variant == "none":
        return fmri_BC.new_zeros(len(fmri_BC))
    losses = []
    if "text" in variant:
        losses.append(clip_losses(fmri_BC, text_BC, scale))
    if "image" in variant:
        assert image_BC is not None, "the image variants need image embeddings"
        losses.append(clip_losses(fmri_BC, image_BC, scale))
    return torch.stack(losses).mean(dim=0)


@dataclass
class AlignTask:
    """Random windows of different scenes against their captions and one frame of each.

    ``validation`` is needed by `validate` only, which also logs ``reference``, such as ridge
    regression's metrics. A ``regression`` is added to the paper's loss with
    ``settings.token_weight``.
    """

    encoder: Encoder
    training: AlignData
    validation: AlignData | None
    settings: Align
    views: Views
    reference: dict[str, float]
    device: torch.device
    regression: TokenRegression | None = None

    def __post_init__(self) -> None:
        self.encoder.to(self.device)
        self.may_leave_out = self.encoder.may_leave_out

    def parameters(self) -> dict[str, nn.Parameter]:
        """The whole encoder and, where there is a contrast, the logits' scale."""
        self.encoder.logit_scale.requires_grad_(self.settings.loss != "none")
        return trainable(self.encoder)

    def sample(self, draw: Draw) -> Batch:
        """Scans of windows that share no scene, with their views' embeddings and perhaps tokens."""
        settings, data, rng = self.settings, self.training, draw.rng
        index = data.windows.sample_batch(rng, draw.size)
        text, image = self.views(index, rng)
        batch: Batch = {"fmri": data.fmri(index), "text": text}
        batch |= {} if image is None else {"image": image}
        if self.regression is not None:
            batch = self.regression.add_targets(batch, index, rng)
        batch["fmri"] = augment_fmri(batch["fmri"], settings.sparsify, settings.input_noise, rng)
        return batch | {"index": index, "person": data.person(index)}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Loss of each row (B,), with a contrast over the rows of all processes."""
        self.encoder.train()
        settings, n = self.settings, self.settings.batch_size
        condition = self.encoder(batch["fmri"].to(self.device), batch["person"].to(self.device))
        with torch.autocast(self.device.type, enabled=False):
            condition = condition.float()
            scale = self.encoder.logit_scale.exp().clamp(max=MOST_LOGIT_SCALE)
            pooled = distributed.gather_rows(self.encoder.pool(condition), n)
            text, image = (
                distributed.gather_rows(batch[name].to(self.device), n) if name in batch else None
                for name in ("text", "image")
            )
            assert text is not None
            contrast = contrastive_losses(pooled, text, image, scale, settings.loss)[distributed.own_rows(n)]
            total, logged = settings.contrastive_weight * contrast, {"contrastive_loss": contrast.detach().mean()}
            if self.regression is not None:
                token = self.regression.losses(condition, batch)
                total = total + settings.token_weight * token
                logged["token_loss"] = token.detach().mean()
        return total, logged

    def validate(self, step: int) -> dict[str, float]:
        """Token R², and top-1 retrieval by pooled condition and by tokens.

        The training mean, which would dominate, is subtracted from the tokens.
        """
        assert self.validation is not None, "validation needs held-out windows"
        self.encoder.eval()
        data, mean = self.validation, self.training.target.mean
        pooled, predicted, tokens = [], [], []
        with torch.inference_mode():
            for start in range(0, len(data), VALIDATION_BATCH):
                index = np.arange(start, min(start + VALIDATION_BATCH, len(data)))
                condition = self.encoder(data.fmri(index).to(self.device), data.person(index).to(self.device)).float()
                pooled.append(self.encoder.pool(condition).cpu())
                predicted.append((condition.cpu() - mean).flatten(1))
                tokens.append((data.target.tokens(index) - mean).flatten(1))
        found, truth = torch.cat(predicted), torch.cat(tokens)
        scene = np.asarray(data.windows.scene)
        hit, chance = retrieval_top1(torch.cat(pooled), self._validation_embeddings(data), scene)
        token_hit, _ = retrieval_top1(found, truth, scene)
        error, spread = ((part.double().square().sum()) for part in (found - truth, truth))
        return {
            "validation_token_r2": 1.0 - float(error / spread),
            "validation_top1": hit,
            "validation_token_top1": token_hit,
            "validation_top1_chance": chance,
            **self.reference,
        }

    def _validation_embeddings(self, data: AlignData) -> torch.Tensor:
        """Sum of the normalised embeddings (N, C) that the loss aligns with."""
        total = torch.zeros(len(data), data.text.pooled.shape[-1])
        if self.settings.loss != "image":
            total += F.normalize(data.text.pooled[data.target.row, 0], dim=-1)
        if data.images is not None:
            total += F.normalize(data.images[:, data.images.shape[1] // 2, 0].float(), dim=-1)
        return total


def retrieval_top1(query_NC: torch.Tensor, target_NC: torch.Tensor, scene_N: np.ndarray) -> tuple[float, float]:
    """How often the target nearest by cosine is of the window's own scene, and its chance."""
    similarity = F.normalize(query_NC, dim=-1) @ F.normalize(target_NC, dim=-1).T
    best = similarity.argmax(dim=1).numpy()
    same = scene_N[:, None] == scene_N[None]
    return float(same[np.arange(len(best)), best].mean()), float(same.mean())


def _split_data(
    recipe: Recipe, stores: Sequence[Store], features: Features, text: TextFeatures, split: Split
) -> AlignData:
    settings = recipe.align
    windows = Windows(stores, split, settings.window)
    images = None
    if "image" in settings.loss:
        has_crops = split == "train" and settings.crop_probability > 0 and settings.augmentation == "fixed"
        images = features.images(split, CROPS if has_crops else 0, stage_seed(recipe.seed, "features"))[windows.film]
    target = TokenTarget(text, list(windows.captions), settings.token_whitening)
    if split == "train" and target.variance == 0.0:
        raise DataError(
            "expected different captions among the training windows, found a single one; look at data.captions"
        )
    return AlignData(windows, target, images)


def new_encoder(recipe: Recipe, run_dir: Path, training: Windows, foundation: Foundation) -> Encoder:
    """The encoder that ``align`` starts from, with the scale of the training scans.

    What it cannot start from, `mindvideo.preflight.impossible_start` has refused.
    """
    settings, chosen = recipe.align, encoder_class(recipe.align.encoder)
    length, width = foundation.condition_length, foundation.condition_width
    sizes = {"window": settings.window, "condition_length": length, "condition_width": width}
    own = encoder_arguments(settings.encoder, settings.dropout, settings.encoder_settings)
    layouts = [store.layout for store in training.stores]
    torch.manual_seed(stage_seed(recipe.seed, STAGE))
    if settings.start_from == "scratch" or not chosen.starts_from_masked_brain:
        return chosen.build(layouts, sizes | fit_scale(*training.scans), recipe.encoder.model_dump(), **own)
    if recipe.adapt.enabled:
        masked = load_masked_brain(run_dir / "adapt" / "model", settings.encoder)
    else:
        masked = pretrained_model(recipe, run_dir, layouts, training.scans)
    return chosen.from_masked_brain(masked, voxel_id=training.store.voxel_id, **sizes, **own)


def run(context: StageContext) -> None:
    """Align the encoder with the frozen embeddings and write ``RUN/align/model``.

    With ``align.loss=none`` and no token regression (the paper's ablation) it stays as it starts.
    """
    recipe, run_dir, folder, progress = context
    settings = recipe.align
    folder.mkdir(parents=True, exist_ok=True)
    stores, foundation = open_stores(recipe.data, run_dir), open_foundation(recipe)
    features = Features(run_dir, stores[0], foundation, progress)
    text = features.text(recipe)
    note_long_captions(folder, foundation, text)
    training = _split_data(recipe, stores, features, text, "train")
    validation = None
    if stores[0].segments("validation"):
        validation = _split_data(recipe, stores, features, text, "validation")
    encoder = new_encoder(recipe, run_dir, training.windows, foundation)
    if settings.loss == "none" and settings.token_weight == 0:
        note_disabled(folder)
        save_model(encoder, folder / "model")
        return
    teachers: list[LinearDecoder] = []
    reference: dict[str, float] = {}
    are_held = encoder.holds_readings or (settings.token_weight > 0 and settings.teacher_weight > 0)
    if are_held or (settings.token_weight > 0 and validation is not None):
        key = [foundation.condition_identity, str(settings.window), f"{len(ALPHAS)} penalties"]
        with distributed.main_first():
            teachers, reference = linear_references(run_dir, training, validation, key, are_held)
    if encoder.holds_readings:
        encoder.take_readings([teacher.reading for teacher in teachers])
    if encoder.holds_readings or settings.token_weight > 0:
        encoder.start_at(training.target.statistics)
    device = distributed.device()
    save_memory(settings, encoder)
    views: Views = FixedViews(training, settings)
    if settings.augmentation == "drawn":
        thesaurus = open_thesaurus(settings.synonyms, training.windows.captions) if settings.word_swap else {}
        views = DrawnViews(training, settings, foundation, thesaurus)
    regression = TokenRegression(training, settings, teachers) if settings.token_weight > 0 else None
    task = AlignTask(encoder, training, validation, settings, views, reference, device, regression)
    validate, seed = None if validation is None else task.validate, stage_seed(recipe.seed, STAGE)
    train(task, settings, folder, seed=seed, progress=progress, validate=validate)
    save_model(encoder, folder / "model")
