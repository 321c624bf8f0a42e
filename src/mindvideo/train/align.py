"""Stage ``align``: windowed fMRI is aligned with frozen CLIP text and images (paper Eq. 3, METHOD section 6).

Shapes: B batch, N windows, W scans per window, V voxels, F frames, L condition tokens, C condition width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindvideo import processes
from mindvideo.artefacts import is_intact, read_note, record_files
from mindvideo.config import Align, Recipe
from mindvideo.data.disk import write_text
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError, TrainingError
from mindvideo.models.fmri_encoder import FmriEncoder, LowRankHead
from mindvideo.models.foundation import Foundation
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.own_encoder import AnyEncoder, OwnEncoder, token_offset
from mindvideo.stages import StageContext
from mindvideo.train.adapt import pretrained_model
from mindvideo.train.augmentation import Mixture, augment_fmri
from mindvideo.train.features import CROPS, Progress, TextFeatures, image_features, store_identity, text_features
from mindvideo.train.loop import Figures, train
from mindvideo.train.ridge import LinearDecoder, fit_linear_decoder, token_r2
from mindvideo.train.stage import open_foundation, save_memory, save_model, stage_seed, trainable, training_device
from mindvideo.train.tokens import TokenTarget

STAGE = "align"
MOST_LOGIT_SCALE = 100.0
VALIDATION_BATCH = 32


def clip_loss(first_BC: torch.Tensor, second_BC: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Symmetric cross-entropy of the cosine similarities of matched rows (CLIP, Radford et al. 2021; paper Eq. 3)."""
    logits = scale * F.normalize(first_BC, dim=-1) @ F.normalize(second_BC, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def contrastive_loss(
    fmri_BC: torch.Tensor,
    text_BC: torch.Tensor,
    image_BC: torch.Tensor | None,
    scale: torch.Tensor | float,
    variant: Literal["text_image", "text", "image", "none"],
) -> torch.Tensor:
    """Eq. 3: the mean of the fMRI-text and fMRI-image losses, or one of them (the paper's ablation)."""
    if variant == "none":
        return fmri_BC.new_zeros(())
    losses = []
    if "text" in variant:
        losses.append(clip_loss(fmri_BC, text_BC, scale))
    if "image" in variant:
        assert image_BC is not None, "the image variants need image embeddings"
        losses.append(clip_loss(fmri_BC, image_BC, scale))
    return torch.stack(losses).mean()


@dataclass
class AlignData:
    """One split: its windows, their captions' tokens, and image embeddings (N, F, 1 + crops, C) where they are used."""

    windows: Windows
    target: TokenTarget
    images: torch.Tensor | None

    def __len__(self) -> int:
        """Number of windows N."""
        return len(self.windows)

    def fmri(self, index: np.ndarray) -> torch.Tensor:
        """The scans of some windows, float32 (B, W, V)."""
        return torch.from_numpy(self.windows.fmri(index))

    @property
    def text(self) -> TextFeatures:
        """The frozen text features."""
        return self.target.text


class AlignTask:
    """Random windows of different scenes against their captions and one frame of each.

    Parameters
    ----------
    encoder : FmriEncoder or OwnEncoder
    training, validation : AlignData
    settings : Align
    reference : dict
        Figures logged with every validation, such as ridge regression's.
    teacher : LinearDecoder, optional
        Ridge regression on the same windows; ``settings.teacher_weight`` is its share of the token targets.
    """

    def __init__(
        self,
        encoder: AnyEncoder,
        training: AlignData,
        validation: AlignData,
        settings: Align,
        reference: dict[str, float],
        device: torch.device,
        teacher: LinearDecoder | None = None,
    ) -> None:
        """Move the encoder to the device."""
        self.encoder = encoder.to(device)
        self.training, self.validation = training, validation
        self.settings, self.reference, self.device, self.teacher = settings, reference, device, teacher

    def parameters(self) -> dict[str, nn.Parameter]:
        """The whole encoder and the logits' scale."""
        return trainable(self.encoder)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, Figures]:
        """Weighted contrastive loss and token regression of one batch; the contrast is over all processes' rows."""
        self.encoder.train()
        settings, data = self.settings, self.training
        index = data.windows.sample_batch(rng, settings.batch_size)
        text, image = self._augmented(index, rng)
        mix = Mixture(len(index), settings.mixup, rng) if settings.mixup > 0 else None
        scans, tokens = data.fmri(index), data.target.tokens(index) if settings.token_weight > 0 else None
        if mix is not None:
            scans, text, image = mix(scans), mix(text), None if image is None else mix(image)
            tokens = None if tokens is None else mix(tokens)
        if tokens is not None and settings.teacher_weight > 0:
            tokens = tokens.lerp(self._taught(scans), settings.teacher_weight)
        fmri = augment_fmri(scans, settings.sparsify, settings.input_noise, rng)
        own = processes.rows(len(index))
        condition = self.encoder(fmri[own].to(self.device))
        with torch.autocast(self.device.type, enabled=False):
            condition = condition.float()
            self.sample_values = index[own], condition.detach().flatten(1).sum(dim=1)
            scale = self.encoder.logit_scale.exp().clamp(max=MOST_LOGIT_SCALE)
            pooled = processes.all_rows(self.encoder.pool(condition), len(index))
            contrast = contrastive_loss(pooled, text, image, scale, settings.loss) / processes.count()
            total = settings.contrastive_weight * contrast
            logged = {"contrastive_loss": contrast.detach()}
            if tokens is not None:
                token = data.target.distance(condition, tokens[own]) * processes.weight(len(index))
                total = total + settings.token_weight * token
                logged["token_loss"] = token.detach()
        return total, logged

    def _taught(self, scans_BWV: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, C) that ridge regression reads from some scans."""
        if self.teacher is None:
            raise TrainingError("expected a linear decoder with align.teacher_weight > 0, found none")
        tokens = torch.from_numpy(self.teacher.predict(scans_BWV.flatten(1).numpy()))
        return tokens.unflatten(1, tuple(self.training.target.mean.shape))

    def _augmented(self, index: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pooled embeddings of one version of each caption and, where images are used, of one view of one frame."""
        data, settings, size = self.training, self.settings, len(index)
        version = rng.integers(data.text.pooled.shape[1], size=size) if settings.word_swap else np.zeros(size, int)
        text = data.text.pooled[data.target.row[index], version].to(self.device)
        if data.images is None:
            return text, None
        n_frames, n_views = data.images.shape[1:3]
        frame = rng.integers(n_frames, size=size)
        view = np.zeros(size, int)
        if n_views > 1:
            view = np.where(rng.random(size) < settings.crop_probability, rng.integers(1, n_views, size=size), 0)
        return text, data.images[index, frame, view].float().to(self.device)

    def validate(self, step: int) -> dict[str, float]:
        """Token R² beside the mean predictor (0) and ridge, and top-1 retrieval by pooled condition and by tokens.

        Tokens are compared after subtracting the training mean, which dominates them and says nothing.
        """
        self.encoder.eval()
        data = self.validation
        error, spread = 0.0, 0.0
        pooled, predicted, tokens = [], [], []
        mean = self.training.target.mean
        with torch.inference_mode():
            for start in range(0, len(data), VALIDATION_BATCH):
                index = np.arange(start, min(start + VALIDATION_BATCH, len(data)))
                condition = self.encoder(data.fmri(index).to(self.device)).float()
                pooled.append(self.encoder.pool(condition).cpu())
                predicted.append((condition.cpu() - mean).flatten(1))
                tokens.append((data.target.tokens(index) - mean).flatten(1))
                error += float((predicted[-1] - tokens[-1]).double().square().sum())
                spread += float(tokens[-1].double().square().sum())
        scene = np.asarray(data.windows.scene)
        hit, chance = retrieval_top1(torch.cat(pooled), self._validation_embeddings(), scene)
        token_hit, _ = retrieval_top1(torch.cat(predicted), torch.cat(tokens), scene)
        figures = {
            "validation_token_r2": 1.0 - error / spread,
            "validation_top1": hit,
            "validation_token_top1": token_hit,
            "validation_top1_chance": chance,
        }
        return {**figures, **self.reference}

    def _validation_embeddings(self) -> torch.Tensor:
        """Sum of the normalised embeddings (N, C) that the loss aligns with: caption, middle frame, or both."""
        data = self.validation
        total = torch.zeros(len(data), data.text.pooled.shape[-1])
        if self.settings.loss != "image":
            total += F.normalize(data.text.pooled[data.target.row, 0], dim=-1)
        if data.images is not None:
            total += F.normalize(data.images[:, data.images.shape[1] // 2, 0].float(), dim=-1)
        return total


def retrieval_top1(query_NC: torch.Tensor, target_NC: torch.Tensor, scene_N: np.ndarray) -> tuple[float, float]:
    """How often the target nearest to a window's query by cosine lies in the window's own scene, and its chance."""
    similarity = F.normalize(query_NC, dim=-1) @ F.normalize(target_NC, dim=-1).T
    best = similarity.argmax(dim=1).numpy()
    same = scene_N[:, None] == scene_N[None]
    return float(same[np.arange(len(best)), best].mean()), float(same.mean())


def _split_data(
    recipe: Recipe,
    run_dir: Path,
    store: Store,
    foundation: Foundation,
    text: TextFeatures,
    split: Literal["train", "validation"],
    progress: Progress | None,
) -> AlignData:
    settings = recipe.align
    windows = Windows(store, split, settings.window)
    images = None
    if "image" in settings.loss:
        crops = CROPS if split == "train" and settings.crop_probability > 0 else 0
        seed = stage_seed(recipe.seed, "features")
        images = image_features(run_dir, store, foundation, split, crops=crops, seed=seed, progress=progress)
    target = TokenTarget(text, list(windows.captions), settings.token_whitening)
    if split == "train" and target.variance == 0.0:
        raise DataError(
            "expected different captions among the training windows, found a single one; look at data.captions"
        )
    return AlignData(windows, target, images)


def new_encoder(recipe: Recipe, run_dir: Path, store: Store, foundation: Foundation, fmri: np.ndarray) -> AnyEncoder:
    """The encoder ``align`` starts from; its input's mean and standard deviation are those of the training windows.

    Raises
    ------
    SettingError
        Where it shall start from ``adapt`` and both masked-modelling stages are switched off.
    """
    settings, architecture = recipe.align, recipe.encoder
    arguments: dict[str, Any] = {
        "window": settings.window,
        "condition_length": foundation.condition_length,
        "condition_width": foundation.condition_width,
        "token_bias": settings.token_bias,
        "input_mean": float(fmri.mean(dtype=np.float64)),
        "input_scale": float(fmri.std(dtype=np.float64)),
        "voxel_id": store.voxel_id,
    }
    torch.manual_seed(stage_seed(recipe.seed, STAGE))
    if settings.encoder is not None:
        if settings.start_from != "scratch":
            raise SettingError(
                f"expected align.start_from=scratch with align.encoder={settings.encoder}, found "
                f"'{settings.start_from}': another encoder cannot start from the masked brain model; set it"
            )
        own = settings.encoder_settings or None
        return OwnEncoder(settings.encoder, num_voxels=store.n_voxels, settings=own, **arguments)
    arguments |= {"dropout": settings.dropout, "layer_norm": settings.layer_norm}
    arguments |= {"head": settings.head, "head_rank": settings.head_rank}
    if settings.start_from == "scratch":
        names = ("patch_size", "patch_weights", "embed_dim", "depth", "num_heads", "mlp_ratio")
        return FmriEncoder(
            num_voxels=store.n_voxels, **{name: getattr(architecture, name) for name in names}, **arguments
        )
    if recipe.adapt.enabled:
        return FmriEncoder.from_masked_brain(MaskedBrainModel.from_pretrained(run_dir / "adapt" / "model"), **arguments)
    if recipe.pretrain.enabled:
        return FmriEncoder.from_masked_brain(pretrained_model(recipe, run_dir, store.n_voxels), **arguments)
    raise SettingError(
        "expected pretrain or adapt to be enabled with align.start_from=adapt, found both disabled; "
        "set align.start_from=scratch"
    )


def start_low_rank_head(head: LowRankHead, target: TokenTarget) -> None:
    """Let the head's ranks begin as the tokens' principal components, each with its standard deviation."""
    rank = min(head.spread.in_features, len(target.components))
    begin = (target.components[:rank] * target.spread[:rank, None].sqrt()).T
    with torch.no_grad():
        head.spread.weight.zero_()
        head.spread.weight[:, :rank] = begin


def linear_reference(
    run_dir: Path, training: AlignData, validation: AlignData, key: list[str]
) -> tuple[LinearDecoder, dict[str, float]]:
    """Ridge regression on the training windows, and its token R² on the validation windows; kept with the features."""
    path = run_dir / "features" / "ridge.json"
    kept_decoder = path.with_suffix(".safetensors")
    kept = read_note(path)
    if kept.get("key") == key and is_intact(path.parent, kept.get("files")):
        return LinearDecoder.open(kept_decoder), {"ridge_token_r2": kept["ridge_token_r2"]}
    (inputs, targets), (unseen, truth) = (
        (
            data.fmri(np.arange(len(data))).flatten(1).numpy(),
            data.target.tokens(np.arange(len(data))).flatten(1).numpy(),
        )
        for data in (training, validation)
    )
    decoder = fit_linear_decoder(inputs, targets)
    score = token_r2(decoder.predict(unseen), truth, decoder.mean)
    path.unlink(missing_ok=True)
    decoder.save(kept_decoder)
    files = record_files(path.parent, [kept_decoder])
    write_text(path, json.dumps({"key": key, "ridge_token_r2": score, "files": files}))
    return decoder, {"ridge_token_r2": score}


def run(context: StageContext) -> None:
    """Align the encoder with the frozen embeddings and write ``RUN/align/model``.

    With ``align.loss=none`` and no token regression (the paper's ablation) the encoder is written as it starts.
    """
    recipe, run_dir, folder, progress = context
    settings = recipe.align
    folder.mkdir(parents=True, exist_ok=True)
    store, foundation = Store.open(run_dir / "prepare" / "store.zarr"), open_foundation(recipe)
    text = text_features(run_dir, store, foundation, seed=stage_seed(recipe.seed, "features"), progress=progress)
    training = _split_data(recipe, run_dir, store, foundation, text, "train", progress)
    validation = _split_data(recipe, run_dir, store, foundation, text, "validation", progress)
    encoder = new_encoder(recipe, run_dir, store, foundation, training.windows.fmri(np.arange(len(training))))
    if (offset := token_offset(encoder)) is not None:
        with torch.no_grad():
            offset.copy_(training.target.mean)
    if settings.token_weight > 0 and isinstance(encoder, FmriEncoder) and isinstance(encoder.proj_head, LowRankHead):
        start_low_rank_head(encoder.proj_head, training.target)
    if settings.loss == "none" and settings.token_weight == 0:
        if processes.is_first():
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "enabled": False}) + "\n")
        save_model(encoder, folder / "model")
        return
    key = [store_identity(store), foundation.condition_identity, str(settings.window)]
    with processes.first_then_others():
        teacher, reference = linear_reference(run_dir, training, validation, key)
    device = training_device()
    save_memory(settings, encoder)
    task = AlignTask(encoder, training, validation, settings, reference, device, teacher)
    train(
        task,
        settings,
        folder,
        seed=stage_seed(recipe.seed, STAGE),
        progress=progress,
        validate=task.validate,
        validate_every=settings.val_every,
        device=device,
    )
    save_model(encoder, folder / "model")
