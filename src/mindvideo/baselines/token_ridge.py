"""``ridge``: banded ridge regression to the condition tokens, with the main method's generator.

The comparison that isolates the encoder. The caption's tokens are predicted through their leading
principal components; the guidance's negative is the mean token matrix, which the mean fMRI
predicts. The ``cotrain`` generator was tuned to the study's own encoder; ``animate``'s has seen
captions only.

Shapes: N windows, B batch, W scans, V voxels, L condition tokens, C condition width, Q components.
"""

from __future__ import annotations

import numpy as np
import torch

from mindvideo.baselines.banded import BandedRidge, Components, explained_variance
from mindvideo.baselines.base import MethodContext
from mindvideo.data.store import Store
from mindvideo.generate.clips import sample_clips
from mindvideo.generate.reconstruct import assemble_pipeline
from mindvideo.models.generators import load_generator
from mindvideo.train.features import caption_table


class Ridge:
    """Ridge regression from fMRI windows to caption tokens; `Method`."""

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.settings = context.recipe.baseline.ridge

    def fit(self, store: Store) -> None:
        """Regress the tokens of the training windows' captions."""
        context = self.context
        self.frames = store.num_frames
        self.size = store.size
        windows = context.windows(store)
        captions = [caption for part in windows.values() for caption in part.captions]
        text = caption_table(context.folder, "text", context.foundation, captions, progress=context.progress)
        rows = {split: text.rows(part.captions) for split, part in windows.items()}
        tokens = {split: text.tokens[index].flatten(1).float().numpy() for split, index in rows.items()}
        self.components = Components(tokens["train"], self.settings.components)
        scores = {split: self.components.scores(values) for split, values in tokens.items()}
        self.ridge = BandedRidge(self.settings.alphas).fit_windows(windows, scores)
        found = self.components.restore(self.ridge.chosen_MT)
        truth = tokens[[*tokens][-1]]
        self.ridge.note(context.folder, token=explained_variance(found, truth, self.components.mean))
        # A student has only seen the study's own conditions.
        recipe = context.recipe.model_copy(update={"distill": None})
        pipeline = assemble_pipeline(recipe, context.run_dir, [store], context.foundation)
        if self.settings.generator == "animate":
            pipeline.register_modules(unet=load_generator(context.run_dir / "animate" / "model").eval())
        pipeline.unet.to(memory_format=torch.channels_last)  # what convolutions are fastest on
        self.pipeline = pipeline.to(context.device)

    def condition(self, fmri: np.ndarray) -> torch.Tensor:
        """Predicted tokens, float32 (B, L, C)."""
        tokens = torch.from_numpy(self.components.restore(self.ridge.predict(fmri)))
        return tokens.view(len(fmri), *self.pipeline.condition_shape)

    def reconstruct(self, fmri: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Clips (B, F, H, W, 3), with the main method's noise of the same windows."""
        settings = self.context.recipe.reconstruct
        size = settings.size or self.size
        negative = torch.from_numpy(self.components.mean).view(1, *self.pipeline.condition_shape)
        return sample_clips(
            self.pipeline, self.context.recipe, window, (settings.num_frames or self.frames, size, size, 3),
            condition=self.condition(fmri),
            **({"negative": "none"} if settings.negative == "none" else {"negative_tokens": negative}),
        )  # fmt: skip
