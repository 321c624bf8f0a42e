"""The parts of the embedded foundation kit, untrained: standard Hugging Face and diffusers classes at tiny size.

The folder has the layout in which Stable Diffusion 1.5, CLIP, BLIP, ViT and VideoMAE would be given, so the same
loading code (:mod:`mindvideo.models.foundation`) serves both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
)

from mindvideo.simulate.scenes import COLOURS, COLUMNS, MOTIONS, ROWS, SYNONYMS, THINGS, draw_scene, scene_caption

IMAGE_CLASSES = tuple(f"{colour} {thing}" for thing, colour in product(THINGS, COLOURS))
VIDEO_CLASSES = tuple(f"{thing} {motion}" for thing, motion in product(THINGS, MOTIONS))


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a kit."""

    size: int = 64
    num_frames: int = 6
    length: int = 64
    width: int = 128
    vae_channels: tuple[int, ...] = (32, 64, 64)
    unet_channels: tuple[int, ...] = (48, 96, 192)
    unet_heads: int = 4
    text_layers: int = 3
    vision_width: int = 160
    vision_layers: int = 5
    heads: int = 4
    patch: int = 8
    video_width: int = 160
    norm_groups: int = 16


KIT = Sizes()
TEST = Sizes(
    size=32, length=52, width=32, vae_channels=(8, 16, 16), unet_channels=(16, 24, 32), unet_heads=2, text_layers=1,
    vision_width=32, vision_layers=1, heads=2, video_width=32, norm_groups=8,
)  # fmt: skip


def caption_corpus(count: int = 3000) -> list[str]:
    """Captions that use every word of the world, from a fixed seed."""
    rng = np.random.default_rng(7)
    wheres = list(product((None, *COLUMNS), (None, *ROWS)))
    captions = [scene_caption(draw_scene(rng, None), wheres[i % len(wheres)], rng) for i in range(count)]
    words = " ".join(word for synonyms in SYNONYMS.values() for word in synonyms)
    return [*captions, *([f"{words} then . , and"] * 20)]


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) until every word is one token; ties fall to the alphabet."""
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in pieces.values()):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            pieces[word] = tuple(merged)
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind whose merges make one token of every word of the world."""
    words = Counter(word for caption in caption_corpus() for word in re.findall(r"[a-z]+|[,.]", caption.lower()))
    merges = learn_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for symbol in symbols:
        vocabulary.setdefault(symbol, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def build_caption_tokenizer() -> BertTokenizer:
    """A word-piece tokenizer of BERT's kind (BLIP uses one) with every word of the world."""
    words = sorted({word.strip(",.") for caption in caption_corpus() for word in caption.split()} - {""})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", ",", "."]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    return BertTokenizer(vocab=vocabulary, bos_token="[DEC]", additional_special_tokens=["[DEC]"])


def build_vae(sizes: Sizes) -> AutoencoderKL:
    """An autoencoder that reduces height and width by four and has four latent channels."""
    blocks = len(sizes.vae_channels)
    return AutoencoderKL(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=sizes.norm_groups if sizes.vae_channels[0] % sizes.norm_groups == 0 else 8,
        sample_size=sizes.size,
        mid_block_add_attention=False,
    )


def build_unet(sizes: Sizes) -> UNet2DConditionModel:
    """A text-conditioned 2-D UNet of Stable Diffusion's kind, without attention at the highest resolution."""
    return UNet2DConditionModel(
        sample_size=sizes.size // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=sizes.unet_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=sizes.width,
        attention_head_dim=sizes.unet_heads,
        norm_num_groups=sizes.norm_groups if sizes.unet_channels[0] % sizes.norm_groups == 0 else 8,
    )


def build_text_encoder(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """CLIP's text tower with its projection."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.width,
            intermediate_size=2 * sizes.width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.heads,
            max_position_embeddings=sizes.length,
            projection_dim=sizes.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _vision(sizes: Sizes, width: int) -> dict[str, int]:
    """What all transformers that see have in common."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.heads,
        "image_size": sizes.size,
        "patch_size": sizes.patch,
    }


def build_image_encoder(sizes: Sizes) -> CLIPVisionModelWithProjection:
    """CLIP's image tower with its projection."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            **_vision(sizes, sizes.vision_width),
            projection_dim=sizes.width,
            hidden_act="gelu",
        )
    )


def build_captioner(sizes: Sizes, tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """BLIP: a vision transformer and a text decoder that attends to it."""
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        encoder_hidden_size=sizes.vision_width,
        intermediate_size=2 * sizes.width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=64,
        bos_token_id=tokenizer.convert_tokens_to_ids("[DEC]"),
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BlipForConditionalGeneration(
        BlipConfig(
            text_config=text,
            vision_config=_vision(sizes, sizes.vision_width),
            projection_dim=sizes.width,
            image_text_hidden_size=sizes.width,
        )
    )


def build_image_classifier(sizes: Sizes) -> ViTForImageClassification:
    """ViT over thing x colour."""
    return ViTForImageClassification(
        ViTConfig(
            **_vision(sizes, sizes.vision_width),
            id2label=dict(enumerate(IMAGE_CLASSES)),
            label2id={name: number for number, name in enumerate(IMAGE_CLASSES)},
        )
    )


def build_video_classifier(sizes: Sizes) -> VideoMAEForVideoClassification:
    """VideoMAE over thing x motion."""
    return VideoMAEForVideoClassification(
        VideoMAEConfig(
            **_vision(sizes, sizes.video_width),
            num_frames=sizes.num_frames,
            tubelet_size=2,
            use_mean_pooling=True,
            id2label=dict(enumerate(VIDEO_CLASSES)),
            label2id={name: number for number, name in enumerate(VIDEO_CLASSES)},
        )
    )


_PROCESSORS = {
    "image_encoder": "CLIPImageProcessor",
    "captioner": "BlipImageProcessor",
    "image_classifier": "ViTImageProcessor",
    "video_classifier": "VideoMAEImageProcessor",
}


def save_image_processor(folder: Path, part: str, size: int) -> None:
    """Write ``preprocessor_config.json`` of a part: resize to a square, scale to [-1, 1]."""
    square: dict[str, int] = {"height": size, "width": size}
    content = {
        "image_processor_type": _PROCESSORS[part],
        "do_resize": True,
        "size": square,
        "do_center_crop": False,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": False,
        "resample": 3,
    }
    (folder / part / "preprocessor_config.json").write_text(json.dumps(content, indent=2))


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's DDIM schedule (docs/method.md, The generator), predicting v."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
    )


def build_kit(out: Path, sizes: Sizes | Literal["kit", "test"] = "kit", seed: int = 0) -> Path:
    """Write a folder with every part of a foundation, randomly initialised.

    Parameters
    ----------
    out : Path
        Receives ``vae``, ``unet``, ``scheduler``, ``tokenizer``, ``text_encoder``, ``image_encoder``, ``captioner``,
        ``image_classifier``, ``video_classifier``.
    sizes : Sizes or {"kit", "test"}
        Widths and depths.
    seed : int
        Of the initial weights.
    """
    chosen = {"kit": KIT, "test": TEST}[sizes] if isinstance(sizes, str) else sizes
    torch.manual_seed(seed)
    tokenizer, caption_tokenizer = build_tokenizer(), build_caption_tokenizer()
    parts = {
        "vae": build_vae(chosen),
        "unet": build_unet(chosen),
        "scheduler": build_scheduler(),
        "tokenizer": tokenizer,
        "text_encoder": build_text_encoder(chosen, tokenizer),
        "image_encoder": build_image_encoder(chosen),
        "captioner": build_captioner(chosen, caption_tokenizer),
        "image_classifier": build_image_classifier(chosen),
        "video_classifier": build_video_classifier(chosen),
    }
    tokenizer.model_max_length = chosen.length
    for name, part in parts.items():
        part.save_pretrained(out / name)
    caption_tokenizer.save_pretrained(out / "captioner")
    for name in _PROCESSORS:
        save_image_processor(out, name, chosen.size)
    return out
