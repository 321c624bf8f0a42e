"""Pixel scores against scikit-image, numpy and colorsys."""

import colorsys

import cv2
import numpy as np
import pytest
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mindvideo.errors import DataError
from mindvideo.evaluate.motion import frame_change
from mindvideo.evaluate.pixel import (
    colour_agreement,
    hue_pcc,
    pixel_correlation,
    psnr,
    ssim_grey,
    ssim_rgb,
)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    truth = np.cumsum(rng.integers(-20, 21, (2, 3, 41, 29, 3)), axis=3).clip(-100, 100).astype(int) + 120
    prediction = truth + rng.integers(-40, 41, truth.shape)
    prediction[0, 0] = 90
    prediction[1, 2] = truth[1, 2]
    return prediction.clip(0, 255).astype(np.uint8), truth.clip(0, 255).astype(np.uint8)


def each(function, prediction, truth):
    return np.array(
        [[function(p, t) for p, t in zip(ps, ts, strict=True)] for ps, ts in zip(prediction, truth, strict=True)]
    )


def test_ssim_equals_scikit_image(frames):
    expected = each(lambda p, t: structural_similarity(t, p, data_range=255, channel_axis=-1), *frames)
    np.testing.assert_allclose(ssim_rgb(*frames), expected, atol=1e-9)
    assert ssim_rgb(*frames)[1, 2] == pytest.approx(1.0)


def test_ssim_of_noise_at_another_size_equals_scikit_image():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 130, 77, 3), dtype=np.uint8)
    expected = structural_similarity(a, b, data_range=255, channel_axis=-1)
    assert ssim_rgb(a, b) == pytest.approx(expected, abs=1e-9)


def test_grey_ssim_equals_scikit_image(frames):
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = each(lambda p, t: structural_similarity(rgb2gray(t), rgb2gray(p), **wang), *frames)
    np.testing.assert_allclose(ssim_grey(*frames), expected, atol=1e-9)
    assert np.abs(ssim_grey(*frames) - ssim_rgb(*frames)).max() > 0.01
    with pytest.raises(DataError, match="11 x 11"):
        ssim_grey(np.zeros((10, 20, 3), np.uint8), np.zeros((10, 20, 3), np.uint8))


def test_hue_pcc_is_the_published_cosine(frames):
    def published(p, t):
        a, b = (cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_BGR2HSV)[..., 0].astype(float).ravel() for x in (p, t))
        return a @ b / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else 0.0

    np.testing.assert_allclose(hue_pcc(*frames), each(published, *frames), atol=1e-12)
    assert hue_pcc(*frames)[0, 0] == 0.0  # a grey prediction


def test_frame_change_is_the_mean_absolute_difference():
    clips = np.array([[0, 10, 4], [7, 7, 7]], dtype=np.uint8)[:, :, None, None, None] * np.ones(
        (1, 1, 4, 5, 3), np.uint8
    )
    assert frame_change(clips).tolist() == [8.0, 0.0]
    assert np.isnan(frame_change(clips[:, :1])).all()


def test_psnr_equals_scikit_image_and_identical_frames_count_100(frames):
    prediction, truth = frames
    with np.errstate(divide="ignore"):
        expected = each(lambda p, t: peak_signal_noise_ratio(t, p, data_range=255), prediction, truth)
    np.testing.assert_allclose(psnr(prediction, truth), np.minimum(expected, 100.0))
    assert psnr(prediction, truth)[1, 2] == 100.0


def test_correlation_equals_numpy_and_is_zero_for_a_constant_frame(frames):
    prediction, truth = frames
    score = pixel_correlation(prediction, truth)
    assert score[0, 0] == 0.0
    assert score[1, 0] == pytest.approx(np.corrcoef(prediction[1, 0].ravel(), truth[1, 0].ravel())[0, 1])


def test_colour_is_the_chroma_weighted_cosine_of_hue_differences():
    rng = np.random.default_rng(2)
    prediction, truth = rng.integers(0, 256, (2, 1, 7, 9, 3), dtype=np.uint8)
    mean_cosine = weights = 0.0
    norm = [0.0, 0.0]
    for p, t in zip(prediction.reshape(-1, 3), truth.reshape(-1, 3), strict=True):
        hue, chroma = [], []
        for red, green, blue in (p / 255.0, t / 255.0):
            y = (np.sqrt(3) / 2) * (green - blue)
            x = red - (green + blue) / 2
            hue.append(np.arctan2(y, x))
            chroma.append(np.hypot(x, y))
        mean_cosine += chroma[0] * chroma[1] * np.cos(hue[0] - hue[1])
        norm[0] += chroma[0] ** 2
        norm[1] += chroma[1] ** 2
        weights += chroma[0] * chroma[1]
    assert colour_agreement(prediction, truth)[0] == pytest.approx(mean_cosine / np.sqrt(norm[0] * norm[1]))


def test_colour_follows_hue_and_not_brightness_or_saturation():
    def plain(hue, saturation=1.0, value=1.0):
        colour = np.round(255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value)))
        return np.broadcast_to(colour.astype(np.uint8), (8, 10, 3))

    red, grey = plain(0.0), plain(0.0, 0.0, 0.5)
    assert colour_agreement(plain(0.0, 0.5, 0.7), red) == pytest.approx(1.0)
    assert colour_agreement(plain(1 / 3), red) == pytest.approx(-0.5)
    assert colour_agreement(plain(0.5), red) == pytest.approx(-1.0)
    assert colour_agreement(grey, red) == 0.0
    assert np.isnan(colour_agreement(red, grey))


def test_bad_frames_are_refused(frames):
    prediction, truth = frames
    with pytest.raises(DataError, match="uint8"):
        ssim_rgb(prediction.astype(np.float32), truth)
    with pytest.raises(DataError, match="one shape"):
        psnr(prediction[:1], truth)
    with pytest.raises(DataError, match="at least 7"):
        ssim_rgb(prediction[..., :5, :, :], truth[..., :5, :, :])
