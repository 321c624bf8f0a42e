"""The explain stage on a tiny run with known informative voxels, and a trained encoder against an untrained one."""

import json

import numpy as np
import pytest
import torch

from mindvideo import atlas
from mindvideo.config import parse_recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, ModelError
from mindvideo.explain import maps, occlusion, recovery
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext

VOXELS, PATCH, LENGTH, WIDTH, N_TEST = 45, 6, 5, 8, 30


class WordFoundation:
    """Tokens and embeddings that depend on the caption's number and the frame's mean."""

    condition_width = WIDTH

    def __init__(self, folder="embedded", device="cpu"):
        rng = np.random.default_rng(0)
        self.tokens = torch.from_numpy(rng.normal(size=(7, LENGTH, WIDTH))).float()

    def encode_text(self, captions):
        tokens = self.tokens[[int(caption.split()[1]) for caption in captions]]
        return tokens, tokens.mean(dim=1)

    def encode_image(self, frames):
        rows = torch.from_numpy(frames.reshape(len(frames), -1)[:, :WIDTH]).float()
        return rows


def informative():
    """Voxels 0–11 and 24–35 follow the caption."""
    return (np.arange(VOXELS) // 12) % 2 == 0


def make_vertex():
    members = np.concatenate([atlas.area_of(name)[:15] for name in ("L_V1", "R_MT", "FFC")])
    return members[atlas.hierarchy_order(members)]


def make_store(path):
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(7, VOXELS)) * informative()
    with StoreWriter(
        path,
        subject="subject1",
        tr_s=2.0,
        lag_s=4.0,
        fps=2,
        size=8,
        splits={"train": ["seg1"], "validation": ["seg2"], "test": ["test1"]},
        vertex=make_vertex(),
    ) as writer:
        for number, (name, n) in enumerate({"seg1": 260, "seg2": 5, "test1": N_TEST}.items()):
            word = rng.integers(0, 7, n)
            runs = (mix[word] + rng.normal(size=(2, n, VOXELS)) * 0.5).astype(np.float32)
            writer.write_fmri(name, runs.mean(axis=0), runs)
            writer.write_frames(name, rng.integers(0, 256, (n, 4, 8, 8, 3), dtype=np.uint8))
            writer.write_scene(name, number * 1000 + np.repeat(np.arange(n), 4).reshape(n, 4))
            captions = [f"word {i}" for i in word]
            writer.write_captions(name, captions, [[caption] * 4 for caption in captions])
        writer.finish()
    return Store.open(path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with a masked brain model and an encoder trained on the tokens for a second."""
    folder = tmp_path_factory.mktemp("run")
    store = make_store(folder / "prepare" / "store.zarr")
    settings = {
        "num_voxels": VOXELS,
        "patch_size": PATCH,
        "patch_weights": "per_patch",
        "embed_dim": 16,
        "num_heads": 2,
    }
    torch.manual_seed(0)
    MaskedBrainModel(**settings, depth=2, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2).save_pretrained(
        folder / "adapt" / "model"
    )
    encoder = FmriEncoder(
        **settings,
        depth=3,
        window=2,
        condition_length=LENGTH,
        condition_width=WIDTH,
        dropout=0.0,
        voxel_id=store.voxel_id,
    )
    windows, foundation = Windows(store, "train", 2), WordFoundation()
    targets = foundation.encode_text(windows.captions)[0]
    fmri = torch.from_numpy(windows.fmri(np.arange(len(windows))))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=5e-3, weight_decay=0.05)
    rng = torch.Generator().manual_seed(0)
    for _ in range(120):
        index = torch.randint(0, len(fmri), (48,), generator=rng)
        optimiser.zero_grad()
        (encoder(fmri[index]) - targets[index]).square().mean().backward()
        optimiser.step()
    encoder.save_pretrained(folder / "align" / "model")
    truth = folder / "simulate" / "truth"
    truth.mkdir(parents=True)
    order = np.random.default_rng(2).permutation(VOXELS + 5)
    vertex = np.concatenate([make_vertex(), atlas.area_of("L_4")[:5]])[order]
    flags = np.concatenate([informative(), np.ones(5, bool)])[order]
    np.savez(truth / "vertices_subject1.npz", vertex=vertex, is_informative=flags, signal_to_noise=flags * 0.5)
    return folder


@pytest.fixture(scope="module")
def explained(run_dir):
    patch = pytest.MonkeyPatch()
    patch.setattr(maps, "Foundation", WordFoundation)
    patch.setattr(maps, "draw_inflated", lambda values, path, *rest: path.write_bytes(b"png"))
    patch.setattr(maps, "draw_flat_map", lambda values, path, *rest: path.write_bytes(b"png"))
    steps = []
    maps.run(StageContext.of(parse_recipe({}), run_dir, "explain", lambda *told: steps.append(told[:2])))
    patch.undo()
    return run_dir / "explain", steps


def read(explained, name):
    return json.loads((explained[0] / name).read_text())


def test_progress_ends_at_its_total(explained):
    assert explained[1][-1][0] == explained[1][-1][1] == len(explained[1])


def test_attention_shares_by_stage_layer_and_network(explained):
    shares = read(explained, "attention.json")
    assert {stage: list(layers) for stage, layers in shares.items()} == {
        "adapt": ["first", "last"],
        "align": ["first", "middle", "last"],
    }
    for layers in shares.values():
        for networks in layers.values():
            assert len(networks) == 17 and sum(networks.values()) == pytest.approx(1)
    sizes = read(explained, "networks.json")
    labels = atlas.yeo17_labels()[make_vertex()]
    assert sizes["visual central"]["voxels"] == int((labels == 1).sum())


def test_maps_lie_at_the_stores_voxels(explained):
    with np.load(explained[0] / "maps.npz") as archive:
        expected = {f"occlusion_{measure}" for measure in occlusion.MEASURES}
        expected |= {f"attention_align_{layer}" for layer in ("first", "middle", "last")}
        assert set(archive.files) == expected | {"attention_adapt_first", "attention_adapt_last"}
        for name in archive.files:
            known = np.flatnonzero(np.isfinite(archive[name]))
            assert set(known) == set(make_vertex().tolist()), name
        assert np.nanmean(archive["attention_align_last"]) == pytest.approx(1, abs=1e-5)
    for name in (
        "flat_attention_align_first",
        "inflated_attention_align_last",
        "inflated_occlusion_tokens",
        "networks",
    ):
        assert (explained[0] / f"{name}.png").is_file()
    assert not list(explained[0].glob("*.tmp"))


def test_temporal_weights_are_named_by_time(explained):
    temporal = read(explained, "temporal.json")
    assert list(temporal) == ["align"]
    assert list(temporal["align"]["middle"]) == ["+4 s", "+6 s"]
    assert sum(temporal["align"]["last"].values()) == pytest.approx(1)


def test_trained_occlusion_finds_the_informative_voxels_and_untrained_does_not(explained):
    """Attention is no match for it at this size: the first layer of two of the untrained encoders has an area of 1."""
    found = read(explained, "truth.json")
    assert (found["n_voxels"], found["n_informative"]) == (45, 24)
    auc, untrained = found["auc"], found["auc_untrained"]
    assert auc["occlusion_tokens"] > 0.95
    assert len(untrained["occlusion_tokens"]) == 3 == len(set(untrained["occlusion_tokens"]))
    assert auc["occlusion_tokens"] > max(untrained["occlusion_tokens"]) + 0.2
    assert set(untrained) == {f"attention_{layer}" for layer in ("first", "middle", "last")} | {
        f"occlusion_{measure}" for measure in occlusion.MEASURES
    }
    low, middle, high = found["auc_random"]
    assert low < 0.5 < high and middle == pytest.approx(0.5, abs=0.1)
    drop = found["ablation"]["drop"]
    assert found["ablation"]["n_silenced"] == 21
    assert drop["informative"]["tokens"] > 5 * abs(drop["other"]["tokens"])
    assert found["rank_correlation"]["occlusion_tokens"] > 0.5
    assert sum(found["areas"][kind]["n_areas"] for kind in found["areas"]) == 3


def test_occlusion_by_area_is_the_drop_of_that_area(explained, run_dir):
    found = read(explained, "occlusion.json")
    store = Store.open(run_dir / "prepare" / "store.zarr")
    encoder = FmriEncoder.from_pretrained(run_dir / "align" / "model").eval()
    windows = Windows(store, "test", 2)
    index = np.arange(N_TEST)
    targets = maps.make_targets(WordFoundation(), windows, index)
    fmri = windows.fmri(index)
    fmri[:, :, np.isin(store.vertex, atlas.area_of("V1"))] = 0
    with torch.no_grad():
        silenced = occlusion.measure_alignment(encoder(torch.from_numpy(fmri)).numpy(), targets)
    assert found["areas"]["V1"]["n_voxels"] == 15
    assert found["areas"]["V1"]["tokens"] == pytest.approx(found["intact"]["tokens"] - silenced["tokens"], abs=1e-5)
    assert found["intact"]["tokens"] > 0.2


def test_one_class_of_voxels_is_said_and_not_scored():
    rng = np.random.default_rng(0)
    result = recovery.compare_with_truth(
        {"map": rng.random(45)}, [], np.ones(45, bool), np.ones(45), [np.arange(45)], rng
    )
    assert result["auc"] == {} and "all 45 selected voxels are truly informative" in result["note"]


def test_areas_of_both_kinds_are_averaged():
    areas = {"A": np.arange(4), "B": np.arange(4, 10), "C": np.arange(10, 12)}
    drops = {"A": dict.fromkeys(occlusion.MEASURES, 0.8), "B": dict.fromkeys(occlusion.MEASURES, 0.6)}
    drops["C"] = dict.fromkeys(occlusion.MEASURES, -0.1)
    is_informative = np.arange(12) < 9  # five sixths of B
    found = recovery.ablate_areas(drops, areas, is_informative)
    assert found["informative"]["n_areas"] == 2 and found["other"]["n_areas"] == 1
    assert found["informative"]["drop"]["text"] == pytest.approx((0.8 / 4 + 0.6 / 6) / 2)
    assert found["other"]["drop"]["tokens"] == pytest.approx(-0.05)
    assert "other" not in recovery.ablate_areas(drops, areas, np.ones(12, bool))


def test_truth_must_hold_every_voxel(run_dir):
    path = run_dir / "simulate" / "truth" / "vertices_subject1.npz"
    is_informative, _ = recovery.read_truth(path, make_vertex())
    assert (is_informative == informative()).all()
    with pytest.raises(DataError, match="found 2 without an entry"):
        recovery.read_truth(path, np.append(make_vertex(), [59000, 59001]))


def test_encoders_of_other_voxels_or_none_are_refused(tmp_path, run_dir):
    store = Store.open(run_dir / "prepare" / "store.zarr")
    with pytest.raises(ModelError, match="run align first"):
        maps.load_encoders(tmp_path, [store])
    FmriEncoder(
        num_voxels=VOXELS, patch_size=PATCH, embed_dim=16, depth=1, num_heads=2, voxel_id="another"
    ).save_pretrained(tmp_path / "align" / "model")
    with pytest.raises(ModelError, match="another subject or selection"):
        maps.load_encoders(tmp_path, [store])


def test_untrained_encoder_is_seeded_and_leaves_the_random_state(run_dir):
    encoder = FmriEncoder.from_pretrained(run_dir / "align" / "model")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = recovery.untrained_like(encoder, 1), recovery.untrained_like(encoder, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.patch_embed.state_dict() for model in (first, second, encoder)]
    name = next(iter(weights[0]))
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])
