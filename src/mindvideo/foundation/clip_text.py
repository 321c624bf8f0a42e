"""CLIP's text tower goes on with films: a still says nothing of motion, so tokens learned from stills hardly hold it.

As in video-language models (Xu et al. 2021, VideoCLIP; Ni et al. 2022, X-CLIP), captions meet whole clips; here the
image tower and the video classifier see them and stay as they are.

Shapes: N clips, M moments, B batch, L tokens, C token width, E embedding width, D width of the video classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, VideoMAEForVideoClassification

from mindvideo.config import Optimise
from mindvideo.foundation.pool import Pool, to_pixels
from mindvideo.foundation.tasks import contrast, near_miss, tokenize
from mindvideo.simulate.scenes import CAMERAS, MOTIONS, SPEEDS, Scene
from mindvideo.train.loop import named_trainable

MOVING = {"motion": MOTIONS, "speed": SPEEDS, "camera": CAMERAS}
SHARPNESS = 15.0
"""Logits for each unit of mean squared distance: captions whose tokens are 0.6 apart are 5 logits apart."""
KEEP = 0.3
"""Weight of the squared distance from the tokens of before, which a generator has learned to read."""
CLIPS = 16_000
MOMENTS = (1, 4)


def moving_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one word changed that only a film shows: its motion, speed or camera."""
    name = str(rng.choice(list(MOVING)))
    others = [value for value in MOVING[name] if value != getattr(scene, name)]
    return Scene(**{**vars(scene), name: str(rng.choice(others))})


def see_clips(
    image: CLIPVisionModelWithProjection,
    video: VideoMAEForVideoClassification,
    pool: Pool,
    progress: Callable[[int, int, dict[str, float]], None] | None,
    clips: int = CLIPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the two models that see make of the pool's first clips.

    Returns
    -------
    stills : Tensor, (N, M, E) float32
        Image embeddings of the frames ``MOMENTS``, of length 1.
    films : Tensor, (N, D) float32
        What the video classifier's last layer reads.
    """
    count, stills, films = min(clips, len(pool.scenes)), [], []
    with torch.inference_mode():
        for start in range(0, count, 32):
            pixels = to_pixels(pool.frames[start : min(start + 32, count)])
            seen = image(pixels[:, list(MOMENTS)].flatten(0, 1)).image_embeds
            stills.append(F.normalize(seen, dim=-1).unflatten(0, (-1, len(MOMENTS))))
            films.append(video.fc_norm(video.videomae(pixels).last_hidden_state.mean(1)))
            if progress and start % 1024 == 0:
                progress(start, count, {})
    return torch.cat(stills), torch.cat(films)


class ClipTextTask:
    """Captions meet clips at their last tokens and stills at their embedding, and keep near the tokens they had.

    Each caption has two near misses: one word that a still shows (:func:`near_miss`), one that only a film shows
    (:func:`moving_miss`). A clip's guess at the tokens (a small network over ``films``) must lie nearer to its own
    caption's tokens, from the end of the text on, than to any other caption's. That distance is taken of the tokens
    themselves, so what tells captions apart must be large in them, not only readable.
    """

    def __init__(self, text: CLIPTextModelWithProjection, before: Callable[[list[str]], torch.Tensor], tokenizer: Any,
                 seen: tuple[torch.Tensor, torch.Tensor], pool: Pool, settings: Optimise) -> None:  # fmt: skip
        """``before`` gives the tokens (B, L, C) of before; ``seen`` is what :func:`see_clips` gives."""
        self.text, self.before, self.tokenizer, self.pool, self.settings = text, before, tokenizer, pool, settings
        self.stills, films = seen
        self.films = (films - films.mean(0)) / films.std(0)
        width = films.shape[1]
        self.guess = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, text.config.hidden_size)
        )
        self.scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def parameters(self) -> dict[str, nn.Parameter]:
        """The text tower, and what is thrown away: the guess and the scale of the stills' logits."""
        return {**named_trainable(nn.ModuleDict({"text": self.text, "guess": self.guess})), "scale": self.scale}

    def _meet_films(self, films: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Symmetric cross-entropy; ``last`` (3 B, C) are the B captions' last tokens, then both near misses of each."""
        squared = torch.cdist(self.guess(films), last).square() / last.shape[1]
        return contrast(-SHARPNESS * squared)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Contrast with films, contrast with stills, and the distance from the tokens of before."""
        index = rng.integers(len(self.films), size=self.settings.batch_size)
        scenes = [self.pool.scenes[i] for i in index]
        captions = [scene.caption(rng) for scene in scenes]
        visible = [near_miss(scene, rng).caption(rng) for scene in scenes]
        moving = [moving_miss(scene, rng).caption(rng) for scene in scenes]
        numbers = tokenize(self.tokenizer, captions + visible + moving)
        output = self.text(numbers)
        tokens, count = output.last_hidden_state.float(), len(index)
        end = (numbers == self.tokenizer.eos_token_id).float()
        last = (tokens * end.unsqueeze(2)).sum(1) / end.sum(1, keepdim=True)
        misses = torch.stack([last[count : 2 * count], last[2 * count :]], 1).flatten(0, 1)
        films, right = self._meet_films(self.films[index], torch.cat([last[:count], misses]))
        stills = self.stills[index, rng.integers(len(MOMENTS), size=count)]
        texts = F.normalize(output.text_embeds[: 2 * count].float(), dim=-1)
        still, _ = contrast(self.scale.exp().clamp(max=100.0) * stills @ texts.T)
        kept = F.mse_loss(tokens[:count], self.before(captions))
        return films + still + KEEP * kept, {
            "films": float(films.detach()), "stills": float(still.detach()), "kept": float(kept.detach()), "accuracy": right,
        }  # fmt: skip
