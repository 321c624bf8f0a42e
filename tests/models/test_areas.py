"""Tokens that are cortical areas: maps of two people against loops, the masked model, the encoder, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mindvideo.atlas import area_labels, area_names, area_of, hierarchy_order, hierarchy_rank
from mindvideo.errors import SettingError
from mindvideo.models.area_maps import AreaMaps
from mindvideo.models.encoders import load_encoder, load_masked_brain
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.models.encoders.ridge_areas import RidgeAreaEncoder
from mindvideo.models.interfaces import TokenStatistics
from mindvideo.models.masked_areas import MaskedAreaModel
from mindvideo.train.ridge import ALPHAS, LinearDecoder, fit_linear_decoder
from mindvideo.voxel_layout import VoxelLayout

DIM = 8
PERSON = torch.tensor([1, 0, 1])


def _layout(counts: dict[str, int], seed: int) -> VoxelLayout:
    """So many voxels of each area, in the store's order, which is not the areas'."""
    rng = np.random.default_rng(seed)
    vertex = np.concatenate([rng.choice(area_of(name), count, replace=False) for name, count in counts.items()])
    vertex = vertex[hierarchy_order(vertex)].astype(np.int32)
    return VoxelLayout(len(vertex), f"person{seed}", vertex, area_labels()[vertex].astype(np.int16))


@pytest.fixture(scope="module")
def layouts() -> list[VoxelLayout]:
    """Two people: V1 of both sides in both, MT in the first only, FFC in the second only."""
    first = _layout({"L_V1": 5, "R_V1": 2, "L_MT": 4}, seed=1)
    second = _layout({"L_V1": 3, "R_V1": 1, "R_FFC": 9, "L_V4": 1}, seed=2)
    return [first, second]


@pytest.fixture
def maps(layouts: list[VoxelLayout]) -> AreaMaps:
    torch.manual_seed(0)
    maps = AreaMaps(layouts, DIM)
    with torch.no_grad():
        maps.bias.normal_()
        maps.missing.normal_()
    return maps


def _areas(layouts: list[VoxelLayout]) -> list[str]:
    """Names of all areas that anyone has, by the hierarchy."""
    seen = {int(label) for layout in layouts for label in layout.area}
    return [area_names()[label] for label in sorted(seen, key=lambda label: (hierarchy_rank(label), label > 180))]


def _scans(layouts: list[VoxelLayout], seed: int) -> torch.Tensor:
    scans = np.random.default_rng(seed).standard_normal((3, 14)).astype(np.float32)
    for row, person in enumerate(PERSON.tolist()):
        scans[row, layouts[person].num_voxels :] = 0
    return torch.from_numpy(scans)


def test_tokens_and_values_equal_a_loop_over_people_and_areas(maps: AreaMaps, layouts: list[VoxelLayout]) -> None:
    names, scans = _areas(layouts), _scans(layouts, 3)
    assert names[:2] == ["L_V1", "R_V1"] and set(names[2:]) == {"L_V4", "R_FFC", "L_MT"}
    tokens, back = maps.encode(scans, PERSON), maps.decode(maps.encode(scans, PERSON), PERSON)
    assert tokens.shape == (3, 5, DIM) and back.shape == (3, 14)
    place = {name: row for row, name in enumerate(names)}
    for row, person in enumerate(PERSON.tolist()):
        layout, done = layouts[person], 0
        expected = torch.zeros(14)
        for name in names:
            voxels = [v for v in range(layout.num_voxels) if area_names()[layout.area[v]] == name]
            matrix = maps.weight[person][done : done + len(voxels)]
            done += len(voxels)
            read = sum((scans[row, v] * line for v, line in zip(voxels, matrix, strict=True)), torch.zeros(DIM))
            own = read + maps.bias[person, place[name]] if voxels else maps.missing[place[name]]
            torch.testing.assert_close(tokens[row, place[name]], own + maps.positions[place[name]])
            for v, line in zip(voxels, matrix, strict=True):
                expected[v] = line @ tokens[row, place[name]]
            mean = float(scans[row, voxels].mean()) if voxels else 0.0
            assert float(maps.area_means(scans, PERSON)[row, place[name]]) == pytest.approx(mean, abs=1e-6)
        torch.testing.assert_close(back[row], expected)


def test_bf16_products_are_those_of_each_area_cast_alone(maps: AreaMaps, layouts: list[VoxelLayout]) -> None:
    """Matrices are cast whole; values and gradients are bit for bit those of products cast one by one."""
    scans, weight, sizes = _scans(layouts, 6), maps.weight[0], maps.sizes[0]
    own = torch.where(torch.tensor(sizes) > 0)[0].tolist()
    with torch.autocast("cpu", torch.bfloat16):
        found = maps.encode(scans[:2], None)
        parts = scans[:2, torch.from_numpy(maps.rows(0))].split(sizes, dim=1)
        pairs = zip(parts, weight.split(sizes), strict=True)
        expected = torch.stack([part @ one for part, one in pairs], dim=1) + maps.bias[0] + maps.positions
    assert torch.equal(found[:, own], expected[:, own])
    assert not torch.equal(found, maps.encode(scans[:2], None))  # fp32
    gradients = [torch.autograd.grad(tokens[:, own].square().sum(), weight)[0] for tokens in (found, expected)]
    assert torch.equal(*gradients)


def test_a_persons_tokens_do_not_depend_on_who_else_is_in_the_batch(maps: AreaMaps, layouts: list[VoxelLayout]) -> None:
    scans = _scans(layouts, 4)
    alone = maps.encode(scans[1:2], PERSON[1:2])
    torch.testing.assert_close(maps.encode(scans, PERSON)[1:2], alone)
    torch.testing.assert_close(maps.encode(scans[1:2], None), alone)  # the first person where nothing is said


def _masked(layouts: list[VoxelLayout]) -> MaskedAreaModel:
    torch.manual_seed(5)
    model = MaskedAreaModel(
        [layout.to_config() for layout in layouts], embed_dim=DIM, depth=1, num_heads=2, decoder_embed_dim=6,
        decoder_depth=1, decoder_num_heads=3, mask_ratio=0.5, input_mean=0.1, input_scale=2.0,
    )  # fmt: skip
    with torch.no_grad():
        for bias in model.voxel_bias:
            bias.normal_()
    return model.eval()


def test_the_masked_loss_is_a_mean_within_areas_then_over_the_hidden_ones_that_are_there(
    layouts: list[VoxelLayout],
) -> None:
    model, scans, names = _masked(layouts), _scans(layouts, 6), _areas(layouts)
    noise = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.2], [0.9, 0.1, 0.8, 0.7, 0.2], [0.9, 0.8, 0.7, 0.1, 0.2]])
    output = model(scans, noise=noise, person=PERSON)
    assert output.prediction.shape == (3, 14) and output.is_masked.shape == (3, 5)
    for row, person in enumerate(PERSON.tolist()):
        hidden = noise[row].argsort()[2:].tolist()  # half of five areas, rounded down, stay
        layout, errors = layouts[person], []
        for area in hidden:
            voxels = [v for v in range(layout.num_voxels) if area_names()[layout.area[v]] == names[area]]
            if voxels:
                wanted = (scans[row, voxels] - 0.1) / 2
                errors.append(float((output.prediction[row, voxels] - wanted).square().mean()))
        assert float(output.sample_loss[row]) == pytest.approx(np.mean(errors), rel=1e-5)
        assert int(output.is_masked[row].sum()) == len(errors)
    alone = model(scans, noise=noise, person=PERSON, mask_ratio=0.95)  # of few areas, one stays visible
    assert bool((alone.is_masked | output.is_masked == alone.is_masked).all())
    assert not alone.is_masked[torch.arange(3), noise.argmin(dim=1)].any() and bool(torch.isfinite(alone.loss))


def test_an_encoder_goes_on_from_the_masked_model_and_comes_back_whole(
    layouts: list[VoxelLayout], tmp_path: Path
) -> None:
    model, scans = _masked(layouts), _scans(layouts, 7)
    model.save_pretrained(tmp_path / "masked")
    again = load_masked_brain(tmp_path / "masked")
    torch.testing.assert_close(again.encode(scans, PERSON), model.encode(scans, PERSON))
    sizes = dict(window=2, condition_length=3, condition_width=10)
    encoder = AreaEncoder.from_masked_brain(again, **sizes, dropout=0.0, head_rank=7, voxel_id="person1").eval()
    windows = torch.stack([scans, scans.flip(0)], dim=1)[[0, 2]]  # both rows are the second person's
    person = torch.tensor([1, 1])
    expected = torch.stack([model.encode(windows[:, scan], person) for scan in range(2)], dim=1)
    torch.testing.assert_close(encoder.tokens(windows[:, :1].expand(-1, 2, -1), person)[:, 0], expected[:, 0])
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder").eval()
    assert isinstance(loaded, AreaEncoder) and loaded.config.num_voxels == 14
    torch.testing.assert_close(loaded(windows, person), encoder(windows, person))
    received = loaded.attention_maps(windows, person)
    assert received.shape == (1, 5)
    assert received.sum().item() == pytest.approx(1, abs=1e-5)
    assert [len(voxels) for voxels in loaded.token_voxels(0)] == encoder.patch_embed.sizes[0]
    assert sum(encoder.patch_embed.sizes[0]) == 11


def test_other_people_keep_what_is_shared(layouts: list[VoxelLayout]) -> None:
    model = _masked(layouts[:1])
    other = MaskedAreaModel.from_other_people(model, layouts, input_scale=3.0)
    assert other.config.input_scale == 3.0 and other.config.num_voxels == 14
    ours, theirs = model.state_dict(), other.state_dict()
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert len(other.voxel_bias) == 2 and not torch.equal(ours["patch_embed.weight.0"], theirs["patch_embed.weight.0"])


def test_voxels_without_a_place_are_refused() -> None:
    with pytest.raises(SettingError, match=r"whose place on the cortex is known.*align\.encoder=paper"):
        AreaMaps([VoxelLayout(9)], DIM)


def test_with_ridge_an_encoder_starts_as_the_regression_and_comes_back_whole(
    layouts: list[VoxelLayout], tmp_path: Path
) -> None:
    """Each person's regression against the normal equations in float64; all five targets vary in two directions."""
    rng, window, length, width = np.random.default_rng(3), 2, 3, 4
    truth = rng.standard_normal((2, length * width))
    torch.manual_seed(1)
    encoder = RidgeAreaEncoder(
        layouts=[layout.to_config() for layout in layouts], window=window, embed_dim=6, depth=1, num_heads=2,
        condition_length=length, condition_width=width, dropout=0.0, head_rank=5,
    ).eval()  # fmt: skip
    mean = rng.standard_normal(length * width).astype(np.float32)
    decoders, expected = [], torch.empty(3, length, width)
    scans = torch.stack([_scans(layouts, seed) for seed in (8, 9)], dim=1)
    for person, layout in enumerate(layouts):
        inputs = rng.standard_normal((61, window * layout.num_voxels)).astype(np.float32) + 0.7
        targets = (inputs[:, :2] @ truth + mean).astype(np.float32)
        decoders.append(fit_linear_decoder(inputs, targets))
        x, y = inputs - inputs.mean(0, dtype=np.float64), targets - targets.mean(0, dtype=np.float64)
        penalty = _penalty_of(decoders[person], x, y)
        weight = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
        for row in np.flatnonzero(person == PERSON):
            own = scans[row, :, : layout.num_voxels].flatten().numpy() - inputs.mean(0, dtype=np.float64)
            expected[row] = torch.from_numpy(own @ weight).view(length, width)
    start = torch.from_numpy(mean).view(length, width)
    statistics = TokenStatistics(start, torch.eye(length * width)[:5], torch.ones(5))
    encoder.start_at(statistics)
    encoder.take_readings([decoder.reading for decoder in decoders])
    torch.testing.assert_close(encoder(scans, PERSON), start + expected, rtol=1e-3, atol=1e-3)
    alone = encoder(scans[1:2])
    torch.testing.assert_close(alone, encoder(scans[1:2], PERSON[1:2]))
    encoder.save_pretrained(tmp_path)
    torch.testing.assert_close(load_encoder(tmp_path)(scans, PERSON), encoder(scans, PERSON), rtol=0, atol=0)
    assert not [name for name, _ in encoder.named_parameters() if "readings" in name]
    with pytest.raises(ValueError, match="zip"):
        encoder.take_readings([decoders[0].reading])


def _penalty_of(decoder: LinearDecoder, x: np.ndarray, y: np.ndarray) -> float:
    """The one of its penalties with which the normal equations come nearest to it."""
    found = decoder.weights / decoder.scale @ decoder.components
    tried = {
        alpha: np.abs(np.linalg.solve(x.T @ x + alpha * decoder.scale**2 * np.eye(x.shape[1]), x.T @ y) - found).max()
        for alpha in ALPHAS
    }
    return float(min(tried, key=tried.__getitem__) * decoder.scale**2)
