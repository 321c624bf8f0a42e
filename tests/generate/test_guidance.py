from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mindvideo.errors import ModelError, SettingError
from mindvideo.generate.guidance import LABELS, guide, negative_condition


@given(st.floats(-3, 20), st.integers(0, 1000))
def test_guide_is_equation_6(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(size=(2, 3, 4, 5))
    found = guide(torch.from_numpy(positive), torch.from_numpy(negative), scale).numpy()
    np.testing.assert_allclose(found, scale * positive + (1 - scale) * negative, atol=1e-12)


def test_guide_falls_back_to_equation_5_on_a_null_negative() -> None:
    positive = torch.randn(2, 3)
    torch.testing.assert_close(guide(positive, torch.zeros(2, 3), 7.5), 7.5 * positive)


def encode(fmri: torch.Tensor) -> torch.Tensor:
    """(1, W, V) to (1, 5, 3), not linear: the mean of conditions is not the condition of the mean."""
    return torch.stack([fmri.square().sum((1, 2)) * k for k in range(15)], dim=1).view(1, 5, 3)


def test_negatives() -> None:
    train, test, own = torch.randn(3, 2, 7)
    means = {"train_mean": train, "test_mean": test}
    for name, mean in means.items():
        found = negative_condition(name, encode, **means)
        torch.testing.assert_close(found, (mean**2).sum() * torch.arange(15.0).view(1, 5, 3))
    torch.testing.assert_close(negative_condition(own, encode), encode(own[None]))
    null = torch.randn(5, 3)
    assert torch.equal(negative_condition("null", encode, null=null), null[None])
    assert negative_condition("none", encode) is None


def test_negatives_that_cannot_be_had() -> None:
    with pytest.raises(ModelError, match=r"mean training fMRI.*set pipe.train_mean"):
        negative_condition("train_mean", encode)
    with pytest.raises(ModelError, match=r"empty caption's tokens.*--foundation FOLDER"):
        negative_condition("null", encode)
    with pytest.raises(SettingError, match=r"test_mean.*use negative='train_mean'"):
        negative_condition("test_mean", encode)
    with pytest.raises(SettingError, match="nearest valid name is 'train_mean'"):
        negative_condition("trainmean", encode)


def test_only_the_test_mean_says_that_it_is_transductive() -> None:
    assert [name for name, label in LABELS.items() if "transductive" in label] == ["test_mean"]
