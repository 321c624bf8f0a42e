"""The rivals' parts against closed forms, explicit loops and other libraries."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from himalaya.kernel_ridge import WeightedKernelRidge
from small_study import FRAMES, SCANS, SPLITS

from mindvideo.baselines.banded import BandedRidge, Components, band_weightings, segment_folds
from mindvideo.baselines.gan import Discriminator, Generator, SpectralConv, frozen
from mindvideo.baselines.mindvis import condition_twice
from mindvideo.baselines.pixels import as_clips, as_tensor, channels_at, halvings
from mindvideo.baselines.separable import FmriToFrames, FramesToFmri, SeparableConv, later_clips
from mindvideo.baselines.vision import VisionNetwork
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import ModelError
from mindvideo.models.foundation import Foundation


@pytest.fixture(scope="module")
def foundation(random_kit: Path) -> Foundation:
    return Foundation(random_kit)


FOLD = np.arange(40) // 10


def regression_data() -> tuple[np.ndarray, ...]:
    """Training and validation windows (n, 2, 11) whose first scan alone carries 3 of 4 targets."""
    rng = np.random.default_rng(2)
    fmri = rng.standard_normal((53, 2, 11)).astype(np.float32) + 3
    maps = rng.standard_normal((11, 4))
    targets = fmri[:, 0] @ maps + 0.5 * rng.standard_normal((53, 4)) + 7
    targets[:, 3] = rng.standard_normal(53)
    return fmri[:40], targets[:40].astype(np.float32), fmri[40:], targets[40:].astype(np.float32)


def test_banded_ridge_against_the_closed_form_in_the_primal() -> None:
    fmri, targets, unseen, validation = regression_data()
    ridge = BandedRidge([0.01, 0.1, 1.0]).fit(fmri, targets, FOLD, (unseen, validation))
    centre = fmri.mean(axis=0)
    scale = np.sqrt(np.square(fmri - centre).sum(axis=2).mean(axis=0))
    for target in range(4):
        band = np.sqrt(ridge.weighting[:, target])[:, None]
        x = ((fmri - centre) / scale[:, None] * band).reshape(40, -1).astype(np.float64)
        new = ((unseen - centre) / scale[:, None] * band).reshape(13, -1)
        y = targets[:, target] - targets[:, target].mean()
        weights = np.linalg.solve(x.T @ x + ridge.alpha[target] * np.eye(22), x.T @ y)
        expected = new @ weights + targets[:, target].mean()
        np.testing.assert_allclose(ridge.predict(unseen)[:, target], expected, rtol=1e-4, atol=1e-4)


def test_banded_ridge_against_himalaya_itself() -> None:
    fmri, targets, unseen, validation = regression_data()
    ridge = BandedRidge([0.03, 0.3]).fit(fmri, targets, FOLD, (unseen, validation))
    centred = [(part - fmri.mean(axis=0)).swapaxes(0, 1).astype(np.float64) for part in (fmri, unseen)]
    centred = [part / ridge.scale_W[:, None, None] for part in centred]
    kernels = np.einsum("wnv,wmv->wnm", centred[0], centred[0])
    with np.errstate(divide="ignore"):
        deltas = np.log(ridge.weighting / ridge.alpha)
    model = WeightedKernelRidge(
        alpha=1.0, deltas=np.maximum(deltas, -30), kernels="precomputed", solver_params={"max_iter": 500, "tol": 1e-12}
    )
    model.fit(kernels, targets - ridge.mean_T)
    expected = model.predict(np.einsum("wnv,wmv->wnm", centred[1], centred[0])) + ridge.mean_T
    np.testing.assert_allclose(ridge.predict(unseen), expected, rtol=1e-3, atol=1e-3)


def test_penalties_and_bands_are_those_of_least_validation_error() -> None:
    fmri, targets, unseen, validation = regression_data()
    alphas = [0.01, 1.0, 30.0]
    chosen = BandedRidge(alphas).fit(fmri, targets, FOLD, (unseen, validation))
    error = np.square(chosen.predict(unseen) - validation).mean(axis=0)
    for weighting in band_weightings(2):
        for alpha in alphas:
            other = BandedRidge([alpha]).fit(fmri, targets, FOLD, (unseen, validation))
            other.alpha, other.weighting = np.full(4, alpha), np.repeat(weighting[:, None], 4, axis=1)
            training = (other._centred(fmri) / other.scale_W[:, None, None]).astype(np.float64)
            other.dual_NT = other._solve(training @ training.swapaxes(1, 2), targets - other.mean_T)
            assert (np.square(other.predict(unseen) - validation).mean(axis=0) >= error - 1e-5).all()
    assert chosen.weighting[0, :3].mean() > 0.6  # the scan that carries the signal


def test_without_held_out_films_they_are_those_of_least_error_over_folds_of_training_films() -> None:
    fmri, targets, _, _ = regression_data()
    alphas = [0.01, 1.0, 30.0]
    chosen = BandedRidge(alphas).fit(fmri, targets, FOLD, None)
    assert chosen.chosen_on == "cross_validation"
    unexplained = np.square(chosen.out_of_fold - targets).sum() / np.square(targets - targets.mean(0)).sum()
    assert chosen.r2 == pytest.approx(1 - unexplained)
    training = (chosen._centred(fmri) / chosen.scale_W[:, None, None]).astype(np.float64)
    kernels, centred = training @ training.swapaxes(1, 2), targets - targets.mean(axis=0)
    errors = {}
    for weighting in band_weightings(2):
        kernel = np.tensordot(weighting, kernels, axes=1)
        for alpha in alphas:
            found = np.empty_like(targets)
            for number in range(4):
                inside, outside = number == FOLD, number != FOLD
                dual = np.linalg.solve(kernel[np.ix_(outside, outside)] + alpha * np.eye(30), centred[outside])
                found[inside] = kernel[np.ix_(inside, outside)] @ dual
            errors[weighting[0], alpha] = np.square(found - centred).mean(axis=0)
    for target in range(4):
        of_chosen = errors[round(chosen.weighting[0, target], 9), round(chosen.alpha[target], 9)][target]
        assert of_chosen == pytest.approx(min(error[target] for error in errors.values()), rel=1e-5)
    assert chosen.weighting[0, :3].mean() > 0.6  # the scan that carries the signal


def test_out_of_fold_predictions_come_from_the_other_folds() -> None:
    fmri, targets, unseen, validation = regression_data()
    fold = FOLD
    ridge = BandedRidge([0.1, 1.0]).fit(fmri, targets, fold, (unseen, validation), keeps_out_of_fold=True)
    changed = targets.copy()
    changed[fold == 2] += 100
    again = BandedRidge([0.1, 1.0]).fit(fmri, changed, fold, (unseen, validation), keeps_out_of_fold=True)
    again.alpha, again.weighting = ridge.alpha, ridge.weighting
    training = (again._centred(fmri) / again.scale_W[:, None, None]).astype(np.float64)
    found = again._out_of_fold(training @ training.swapaxes(1, 2), changed, fold)
    np.testing.assert_allclose(found[fold == 2], ridge.out_of_fold[fold == 2], rtol=1e-4, atol=1e-4)
    assert not np.allclose(found[fold != 2], ridge.out_of_fold[fold != 2], atol=1)


@pytest.mark.parametrize("shape", [(9, 23), (31, 7)])
def test_components_against_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(3).standard_normal(shape).astype(np.float32) + 2
    components = Components(rows, 5)
    _, _, right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(components.basis @ right[:5].T), np.eye(5), atol=1e-4)
    whole = Components(rows, 99)
    np.testing.assert_allclose(whole.restore(whole.scores(rows)), rows, atol=1e-4)


def test_deconvolution_against_lstsq(foundation: Foundation) -> None:
    network = VisionNetwork(foundation)
    rng = np.random.default_rng(4)
    size, side = network.size, network.side
    frames = rng.integers(0, 256, (60, size, size, 3), dtype=np.uint8)
    frames = frames // 2 + rng.integers(0, 128, (60, 1, 1, 3), dtype=np.uint8)
    early = network.early(frames[:2])
    with torch.no_grad():
        pixels = foundation._pixels("image_classifier", frames)
        expected = foundation.image_classifier.vit.embeddings.patch_embeddings(pixels[:2])
    np.testing.assert_allclose(early, expected.flatten(1).numpy(), atol=1e-4)
    network.fit_deconvolution(lambda number: frames[30 * number : 30 * number + 30], 2)
    maps = network.early(frames).reshape(-1, len(network.kernel)).astype(np.float64)
    patches = np.stack([
        frame[top : top + side, left : left + side].transpose(2, 0, 1).ravel() / 255.0
        for frame in frames for top in range(0, size, side) for left in range(0, size, side)
    ])  # fmt: skip
    constant = np.ones((len(maps), 1))
    solution = np.linalg.lstsq(np.hstack([maps, constant]), patches, rcond=None)[0]
    noisy = early + 0.01 * rng.standard_normal(early.shape).astype(np.float32)
    rows = noisy.reshape(-1, maps.shape[1])
    found = network.deconvolve(noisy, size)
    wanted = np.round((np.hstack([rows, np.ones((len(rows), 1))]) @ solution).clip(0, 1) * 255)
    count = size // side
    wanted = wanted.reshape(2, count, count, 3, side, side).transpose(0, 1, 4, 2, 5, 3).reshape(2, size, size, 3)
    assert np.abs(found - wanted).max() <= 1


def test_deconvolution_is_the_inverse_where_there_is_one(foundation: Foundation) -> None:
    network = VisionNetwork(foundation)
    width = network.kernel.shape[1]
    network.kernel = torch.randn(width + 3, width, generator=torch.Generator().manual_seed(1)).double()
    network.bias = torch.ones(width + 3).double()
    frames = np.random.default_rng(5).integers(0, 256, (90, network.size, network.size, 3), dtype=np.uint8)
    network.fit_deconvolution(lambda number: frames, 1)
    assert np.abs(network.deconvolve(network.early(frames[:2]), network.size).astype(int) - frames[:2]).max() <= 1


def test_categories_are_the_classifiers_own(foundation: Foundation) -> None:
    network = VisionNetwork(foundation)
    frames = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        network.categories(network.semantic(frames)), foundation.classify_images(frames), rtol=1e-4, atol=1e-6
    )
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    assert network.tokens(pixels, 1).shape[0] == 3
    with pytest.raises(ModelError, match="layer"):
        network.tokens(pixels, 99)


def test_separable_convolution_against_loops() -> None:
    torch.manual_seed(6)
    conv = SeparableConv(2, 3, stride=2)
    x = torch.randn(1, 2, 4, 6, 8)
    space, time = conv.space.weight.detach().numpy(), conv.time.weight.detach().numpy()
    padded = np.pad(x[0].numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    middle = np.zeros((3, 4, 3, 4))
    for out in range(3):
        for f in range(4):
            for i in range(3):
                for j in range(4):
                    patch = padded[:, f, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                    middle[out, f, i, j] = (space[out, :, 0] * patch).sum() + float(conv.space.bias[out])
    later = np.pad(middle, ((0, 0), (1, 1), (0, 0), (0, 0)))
    expected = np.zeros((3, 4, 3, 4))
    for out in range(3):
        for f in range(4):
            window = later[:, f : f + 3]
            expected[out, f] = np.einsum("ck,ckij->ij", time[out, :, :, 0, 0], window) + float(conv.time.bias[out])
    np.testing.assert_allclose(conv(x)[0].detach().numpy(), expected, atol=1e-5)


def test_the_encoders_read_out_against_loops() -> None:
    torch.manual_seed(7)
    encoder = FramesToFmri(window=2, voxels=5, frames=3, size=16, width=8)
    torch.nn.init.normal_(encoder.field)
    clips = torch.rand(2, 3, 3, 16, 16)
    x = clips * 2 - 1
    for layer, norm in zip(encoder.layers, encoder.norms, strict=True):
        x = torch.nn.functional.leaky_relu(norm(layer(x)), 0.1)
    expected = torch.zeros(2, 10)
    for readout in range(10):
        for channel in range(8):
            seen = sum(encoder.moments[f] * x[:, channel, f] for f in range(3)).flatten(1)
            expected[:, readout] += encoder.channel[readout, channel] * (seen @ encoder.field[readout])
    expected = expected + encoder.bias
    torch.testing.assert_close(encoder(clips), expected.view(2, 2, 5), atol=1e-4, rtol=1e-4)
    decoder = FmriToFrames(encoder, frames=3, size=16, width=8)
    fmri, maps = torch.randn(1, 10), torch.randn(8, 64)  # <read out(maps), fmri> = <maps, project back(fmri)>
    read = ((maps @ encoder.field.T) * encoder.channel.T).sum(dim=0)
    back = (
        torch.einsum("r,rc,rs->cs", fmri[0], decoder.channel, decoder.field)
        * encoder.channel.std()
        / decoder.channel.std()
    )
    torch.testing.assert_close((read * fmri[0]).sum(), (maps * back).sum(), atol=1e-3, rtol=1e-3)
    assert decoder(torch.randn(4, 2, 5)).shape == (4, 3, 3, 16, 16)


def test_later_clips_never_join_two_runs(rival_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "keeps_repeats_apart", True)
    windows = Windows(rival_store, "train", 2)
    count, read = later_clips(windows)
    assert count == 3 * 2 * (SCANS - 1)  # segments, runs
    clips = read(np.arange(count))
    frames = [rival_store.frames(name) for name in SPLITS["train"] for _ in range(2)]
    expected = [np.concatenate([a[FRAMES // 2 :], b[: FRAMES // 2]]) for run in frames for a, b in pairwise(run)]
    np.testing.assert_array_equal(clips, np.stack(expected))


def test_spectral_convolution_has_norm_one() -> None:
    torch.manual_seed(8)
    conv = SpectralConv(3, 5, (1, 3, 3), (1, 2, 2))
    torch.nn.init.normal_(conv.weight, std=4)
    x = torch.randn(2, 3, 4, 8, 6)
    largest = np.linalg.svd(conv.weight.detach().numpy().reshape(5, -1), compute_uv=False)[0]
    plain = torch.nn.functional.conv3d(x, conv.weight / float(largest), conv.bias, (1, 2, 2), (0, 1, 1))
    torch.testing.assert_close(conv(x), plain)


def test_the_generators_loss_leaves_the_discriminator_alone() -> None:
    torch.manual_seed(9)
    generator, judge = Generator(5, 3, 8, 3, 16), Discriminator(5, 8, 16, 3)
    embedding = torch.randn(2, 5)
    clips = generator(embedding, torch.randn(2, 3))
    assert clips.shape == (2, 3, 3, 16, 16)
    frozen(judge)(clips, embedding).mean().backward()
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert all(parameter.requires_grad for parameter in judge.parameters())


def test_folds_are_whole_segments() -> None:
    segment = np.repeat([f"seg{n}" for n in range(7)], 4)
    fold = segment_folds(segment)
    assert len(np.unique(fold)) == 5
    assert all(len(np.unique(fold[segment == name])) == 1 for name in np.unique(segment))
    np.testing.assert_array_equal(np.unique(segment_folds(np.repeat("seg1", 10)), return_counts=True)[1], [2] * 5)


def test_second_condition_changes_nothing_at_first_and_something_later(foundation: Foundation) -> None:
    unet = foundation.unet
    double = condition_twice(unet).eval()
    torch.manual_seed(10)
    side = unet.config.sample_size
    latents = torch.randn(2, unet.config.in_channels, side, side)
    condition = torch.randn(2, 7, unet.config.cross_attention_dim)
    with torch.no_grad():
        expected = unet(latents, torch.tensor(400), condition).sample
        found = double(latents.unsqueeze(2), torch.tensor(400), condition).sample.squeeze(2)
        torch.testing.assert_close(found, expected)
        torch.nn.init.normal_(double.class_embedding.weight)
        changed = double(latents.unsqueeze(2), torch.tensor(400), condition).sample.squeeze(2)
    assert (changed - expected).abs().max() > 1e-3
    with pytest.raises(ModelError, match="class embedding"):
        condition_twice(double)


def test_clips_to_tensors_and_back() -> None:
    clips = np.random.default_rng(11).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    tensor = as_tensor(clips, torch.device("cpu"))
    assert tensor.shape == (2, 3, 3, 4, 5)
    assert tensor[1, 2, 0, 3, 4] == clips[1, 0, 3, 4, 2] / np.float32(255)
    np.testing.assert_array_equal(as_clips(tensor), clips)
    assert [halvings(size, 8) for size in (8, 9, 64, 256, 24)] == [0, 0, 3, 5, 2]
    assert [channels_at(40, step) for step in range(4)] == [40, 20, 8, 8]
