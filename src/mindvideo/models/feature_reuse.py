"""Deep features of one denoising step used again in the next ones (Ma et al., DeepCache, CVPR 2024).

Between two steps the deep, coarse features of the UNet hardly change. On every n-th step the whole network runs; in
between, every part but the first convolution and the last layer of the last block returns what it returned last time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn

from mindvideo.models.video_unet import VideoUNet


def inner_parts(unet: VideoUNet) -> list[nn.Module]:
    """Everything whose output is kept: all blocks but the last, and all but the last layer of that one."""
    last = unet.up_blocks[-1]
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks[:-1], *last.resnets[:-1]]
    return [*parts, *last.attentions[:-1]] if hasattr(last, "attentions") else parts


class FeatureReuse:
    """While entered, lets the inner parts of a UNet answer from memory on all but every n-th step.

    Parameters
    ----------
    unet : VideoUNet
    every : int
        1: the whole network at every step, nothing is touched.
    """

    def __init__(self, unet: VideoUNet, every: int) -> None:
        self.parts = inner_parts(unet) if every > 1 else []
        self.every, self.step, self.n_clips = every, 0, 0
        self.is_from_memory = False
        self.own: list[Callable[..., Any] | None] = []

    def __enter__(self) -> FeatureReuse:
        """Put a memory before every inner part."""
        self.own = [part.__dict__.get("forward") for part in self.parts]
        for part in self.parts:
            part.forward = self._remember(part.forward)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the memories away."""
        for part, own in zip(self.parts, self.own, strict=True):
            del part.forward
            if own is not None:
                part.forward = own

    def begin_step(self, n_clips: int) -> None:
        """Choose between memory and a whole pass; another number of clips than the step before needs a whole one."""
        if n_clips != self.n_clips:
            self.step, self.n_clips = 0, n_clips
        self.is_from_memory = self.step % self.every != 0
        self.step += 1

    def _remember(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[Any] = []

        def answer(*args: Any, **kwargs: Any) -> Any:
            if not self.is_from_memory:
                kept[:] = [forward(*args, **kwargs)]
            return kept[0]

        return answer
