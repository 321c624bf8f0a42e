"""Attention spread to voxels and networks, areas under ROC curves, occlusion, and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from mindvideo import atlas
from mindvideo.errors import DataError
from mindvideo.explain import attention, occlusion, surfaces
from mindvideo.models.encoders.fmri_encoder import FmriEncoder

WINDOW, VOXELS, PATCH, LENGTH, WIDTH = 2, 37, 5, 4, 6


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return FmriEncoder(
        num_voxels=VOXELS,
        window=WINDOW,
        patch_size=PATCH,
        embed_dim=16,
        depth=5,
        num_heads=2,
        condition_length=LENGTH,
        condition_width=WIDTH,
        dropout=0.4,
    ).eval()


def test_spreading_follows_the_padding_of_windows_and_keeps_sums():
    rng = np.random.default_rng(0)
    for num_voxels, patch_size in [(37, 5), (40, 8), (7, 16), (3, 8)]:
        encoder = FmriEncoder(
            num_voxels, window=1, patch_size=patch_size, embed_dim=4, depth=1, num_heads=1, condition_length=2,
            condition_width=3,
        )  # fmt: skip
        sources = np.stack(encoder.token_voxels())
        assert (sources.ravel() == np.resize(np.arange(num_voxels), sources.size)).all()
        patches = rng.random((2, len(sources)))
        expected = np.zeros((2, num_voxels))
        for p, row in enumerate(sources):
            for voxel in row:
                expected[:, voxel] += patches[:, p] / patch_size
        voxels = attention.spread_to_voxels(patches, sources, num_voxels)
        np.testing.assert_allclose(voxels, expected)
        np.testing.assert_allclose(voxels.sum(axis=1), patches.sum(axis=1))
    ragged = attention.spread_to_voxels(np.array([6.0, 5.0]), [np.array([4, 1, 0]), np.array([1])], 6)
    assert ragged.tolist() == [2, 7, 0, 0, 2, 0]


def test_average_over_batches_equals_one_call(encoder):
    fmri = np.random.default_rng(1).normal(size=(attention.BATCH_WINDOWS + 7, WINDOW, VOXELS)).astype(np.float32)
    spatial = attention.average_attention(encoder, fmri)
    np.testing.assert_allclose(spatial, encoder.attention_maps(torch.from_numpy(fmri)).numpy(), atol=1e-6)
    assert spatial.shape == (5, 8)
    np.testing.assert_allclose(spatial.sum(axis=1), 1, atol=1e-6)
    temporal = attention.average_temporal_attention(encoder, fmri)
    np.testing.assert_allclose(temporal, encoder.temporal_attention(torch.from_numpy(fmri)).numpy(), atol=1e-6)


def test_layers():
    assert attention.choose_layers(24) == {"first": 0, "middle": 12, "last": 23}
    assert attention.choose_layers(1) == {"only": 0}
    assert attention.choose_layers(2) == {"first": 0, "last": 1}


def test_networks_sum_to_one_and_leave_out_unassigned_voxels():
    labels = atlas.yeo17_labels()
    vertex = np.concatenate([np.flatnonzero(labels == label)[:n] for label, n in [(0, 4), (1, 3), (2, 5), (17, 2)]])
    values = np.random.default_rng(2).random(len(vertex))
    shares = attention.sum_by_network(values, vertex)
    assert len(shares) == 17 and sum(shares.values()) == pytest.approx(1)
    assert shares["visual peripheral"] == pytest.approx(values[7:12].sum() / values[4:].sum())
    assert shares["limbic orbitofrontal"] == 0


def test_cortical_map():
    vertex = np.array([40000, 3, 59411])
    cortex = attention.map_to_cortex(np.array([0.5, 2.0, 7.0]), vertex)
    assert cortex[vertex].tolist() == [0.5, 2.0, 7.0] and np.isfinite(cortex).sum() == 3


def test_area_under_roc_equals_sklearn_with_ties():
    rng = np.random.default_rng(3)
    for _ in range(5):
        values, label = rng.integers(0, 9, 83).astype(float), rng.random(83) < 0.3
        assert attention.area_under_roc(values, label) == pytest.approx(roc_auc_score(label, values))
    assert attention.area_under_roc(values, np.ones(83, bool)) is None


def make_targets(rng, n=9):
    return occlusion.Targets(
        rng.normal(size=(n, WIDTH)), rng.normal(size=(n, WIDTH)), rng.normal(size=(n, LENGTH, WIDTH))
    )


def test_alignment_by_hand():
    rng = np.random.default_rng(4)
    targets = make_targets(rng)
    condition = targets.tokens + rng.normal(size=targets.tokens.shape)
    found = occlusion.measure_alignment(condition, targets)
    pooled = condition.mean(axis=1) - condition.mean(axis=(0, 1))
    text = targets.text - targets.text.mean(axis=0)
    cosines = [p @ t / np.linalg.norm(p) / np.linalg.norm(t) for p, t in zip(pooled, text, strict=True)]
    assert found["text"] == pytest.approx(np.mean(cosines))
    centred = [(x - x.mean(axis=0)).ravel() for x in (targets.tokens, condition)]
    assert found["tokens"] == pytest.approx(np.corrcoef(*centred)[0, 1])
    assert occlusion.measure_alignment(7 * condition + 2, targets) == pytest.approx(found)  # scale does not count
    constant = np.broadcast_to(targets.tokens.mean(axis=0), targets.tokens.shape)
    assert occlusion.measure_alignment(constant, targets) == pytest.approx({"text": 0, "image": 0, "tokens": 0})
    with pytest.raises(DataError, match="two or more"):
        occlusion.measure_alignment(condition[:1], targets)


def test_silencing_is_setting_to_zero_and_leaves_the_input_alone(encoder):
    rng = np.random.default_rng(5)
    fmri = rng.normal(size=(9, WINDOW, VOXELS)).astype(np.float32)
    kept = fmri.copy()
    targets = make_targets(rng)
    groups = {"few": np.array([1, 30]), "none": np.array([], dtype=int), "all": np.arange(VOXELS)}
    intact, drops = occlusion.measure_drops(encoder, fmri, groups, targets)
    assert (fmri == kept).all()
    assert drops["none"] == {"text": 0, "image": 0, "tokens": 0}
    zeroed = fmri.copy()
    zeroed[:, :, [1, 30]] = 0
    with torch.no_grad():
        expected = occlusion.measure_alignment(encoder(torch.from_numpy(zeroed)).numpy(), targets)
    assert drops["few"]["tokens"] == pytest.approx(intact["tokens"] - expected["tokens"], abs=1e-6)
    assert intact["text"] - drops["all"]["text"] == pytest.approx(0.0, abs=1e-3)


def test_areas_of_both_hemispheres_go_together():
    area = np.array([1, 181, 4, 1, 184])
    groups = {name: voxels.tolist() for name, voxels in occlusion.group_by_area(area).items()}
    assert groups == {"V1": [0, 1, 3], "V2": [2, 4]}


def test_triangles_take_the_mean_of_known_corners():
    values = np.array([1.0, 3.0, np.nan, np.nan, np.nan])
    triangles = np.array([[0, 1, 2], [2, 3, 4], [1, 2, 3]])
    np.testing.assert_array_equal(surfaces.triangle_means(values, triangles), [2.0, np.nan, 3.0])


def test_hemispheres_are_told_apart():
    values = np.arange(59412.0)
    left, right = surfaces.hemisphere_values(values)
    vertex, is_right = atlas.surface_vertex_index()
    assert (left[vertex[~is_right]] == values[:29696]).all() and (right[vertex[is_right]] == values[29696:]).all()
    assert np.isnan(left).sum() == 32492 - 29696


def test_flat_map_colours_the_right_place(tmp_path):
    values = np.full(59412, np.nan)
    values[atlas.area_of("L_V1")] = 1.0
    values[atlas.area_of("L_4")] = -1.0
    surfaces.draw_flat_map(values, tmp_path / "map.png", "title", "label")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    is_brown = (pixels[..., 0] > 100) & (pixels[..., 2] < 40)  # the ends of the signed scale
    is_violet = (pixels[..., 2] > 55) & (pixels[..., 0] < 70) & (pixels[..., 1] < 30)
    width = pixels.shape[1]
    left_brown, left_violet = is_brown[:, : width // 2], is_violet[:, : width // 2]
    assert left_brown.sum() > 200 and left_violet.sum() > 200
    assert is_brown[:, width // 2 : int(0.85 * width)].sum() == 0
    assert np.nonzero(left_brown)[1].mean() > np.nonzero(left_violet)[1].mean() + 50
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(DataError, match="at least one value"):
        surfaces.draw_flat_map(np.full(59412, np.nan), tmp_path / "none.png", "", "")


def test_colour_limits_meet_at_zero_only_for_signed_maps():
    values = np.append(np.linspace(-1, 4, 101), np.nan)
    low, high, is_signed = surfaces.colour_limits(values)
    assert is_signed and high == pytest.approx(np.percentile(values[:-1], 98)) and low == -high
    assert surfaces.colour_limits(np.linspace(2, 4, 51)) == (pytest.approx(2.04), pytest.approx(3.96), False)
    assert surfaces.colour_limits(np.full(5, 3.0)) == (2.5, 3.5, False)


def test_bars_of_networks_are_in_proportion(tmp_path):
    shares = {"adapt": {"only": {"a": 0.2, "b": 0.8, "c": 0.0}}, "align": {"first": {"a": 0.6, "b": 0.2}, "last": {}}}
    surfaces.draw_networks(shares, {"a": 0.5, "b": 0.5, "c": 0.0}, tmp_path / "networks.png")
    pixels = np.asarray(Image.open(tmp_path / "networks.png").convert("RGB")).astype(int)
    is_bar = (np.abs(pixels - [0x3C, 0x8D, 0x92]) < 12).all(axis=-1)
    rows = is_bar.sum(axis=1)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], rows > 0])) == 1)
    lengths = [rows[start + 2] for start in starts]
    np.testing.assert_allclose(np.array(lengths) / lengths[0], [1, 4, 3, 1], rtol=0.12)
