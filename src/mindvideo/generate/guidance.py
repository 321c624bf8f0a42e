"""Adversarial guidance (paper Eq. 5 and 6): what to generate, and what not to generate.

Shapes: B batch, W scans per window, V voxels, L condition tokens, C condition width.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch

from mindvideo.errors import ModelError, SettingError

LABELS = {
    "train_mean": "negative: mean training fMRI (inductive)",
    "test_mean": "negative: mean test fMRI (transductive: the generator has seen the whole test set)",
    "null": "negative: the empty caption (ordinary classifier-free guidance)",
    "none": "no guidance",
}


def guide(positive: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided noise of the noise predicted under two conditions (paper Eq. 6; Eq. 5 when the negative is null).

    A scale of 1 gives ``positive``, 0 gives ``negative``.
    """
    return negative + scale * (positive - negative)


def negative_condition(
    negative: str | torch.Tensor,
    encode: Callable[[torch.Tensor], torch.Tensor],
    *,
    null: torch.Tensor | None = None,
    train_mean: torch.Tensor | None = None,
    test_mean: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Condition of what not to generate, (1, L, C); None for ``none``, which means no guidance.

    A mean is taken over fMRI, not over embeddings (paper appendix: "an average fMRI as the negative
    guidance").

    Parameters
    ----------
    negative : str or Tensor
        ``train_mean``, ``test_mean``, ``null`` (the empty caption, as in Eq. 5), ``none``, or fMRI
        (W, V) float32.
    encode : callable
        fMRI (1, W, V) to condition (1, L, C).
    null : Tensor, optional
        The empty caption's tokens (L, C).
    train_mean, test_mean : Tensor, optional
        Mean windows (W, V).

    Raises
    ------
    SettingError
        For an unknown name, or ``test_mean`` without the mean.
    ModelError
        For ``train_mean`` or ``null`` when the pipeline was saved without them.
    """
    if isinstance(negative, torch.Tensor):
        return encode(negative[None])
    if negative not in LABELS:
        near = difflib.get_close_matches(negative, list(LABELS), n=1, cutoff=0.0)
        raise SettingError(
            f"expected negative to be one of {', '.join(LABELS)} or an fMRI tensor, found '{negative}'; "
            f"the nearest valid name is '{near[0]}'"
        )
    if negative == "none":
        return None
    if negative == "null":
        if null is None:
            raise ModelError(
                "expected the pipeline to hold the empty caption's tokens (L, C) for negative='null', found none; run the "
                "study's reconstruct again, or convert the release again with --foundation FOLDER, which has its tokenizer "
                "and text_encoder, or set pipe.null_condition = Foundation(FOLDER).null_condition()"
            )
        return null[None]
    if negative == "train_mean":
        if train_mean is None:
            raise ModelError(
                "expected the pipeline to hold the mean training fMRI, found none; set pipe.train_mean to a (W, V) "
                "tensor, or choose another negative"
            )
        return encode(train_mean[None])
    if test_mean is None:
        raise SettingError(
            "expected test_mean, the mean test fMRI (W, V), with negative='test_mean', found none; pass it, or use "
            "negative='train_mean', which needs no other test windows"
        )
    return encode(test_mean[None])
