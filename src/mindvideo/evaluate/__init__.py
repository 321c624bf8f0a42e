"""Scores, controls and statistics."""

from mindvideo.evaluate.pixel import ssim_rgb
from mindvideo.evaluate.semantic import n_way_top_k

__all__ = ["n_way_top_k", "ssim_rgb"]
