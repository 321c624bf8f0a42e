"""Reconstruct the video a person watched from their fMRI, and say how much the brain told."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindvideo.generate.pipeline import MindVideoPipeline as MindVideoPipeline
    from mindvideo.models.encoders.fmri_encoder import FmriEncoder as FmriEncoder
    from mindvideo.models.generators.video_unet import VideoUNet as VideoUNet
    from mindvideo.models.masked_brain import MaskedBrainModel as MaskedBrainModel

_PUBLIC = {
    "FmriEncoder": "mindvideo.models.encoders.fmri_encoder",
    "MaskedBrainModel": "mindvideo.models.masked_brain",
    "MindVideoPipeline": "mindvideo.generate.pipeline",
    "VideoUNet": "mindvideo.models.generators.video_unet",
}
__all__ = ["FmriEncoder", "MaskedBrainModel", "MindVideoPipeline", "VideoUNet"]


def __getattr__(name: str) -> Any:
    """Load a public class when it is first asked for, so that the command line starts fast."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mindvideo' has no attribute '{name}'")
