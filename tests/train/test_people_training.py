"""Two people of different voxels who saw the same films: windows, batches, teachers, and every training stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from killing import kill_stages
from safetensors.torch import load_file

from kit.parts import build_kit
from mindvideo.config import Recipe, parse_recipe
from mindvideo.data.store import Store, open_stores
from mindvideo.data.windows import Windows
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, ModelError, SettingError
from mindvideo.models.encoders import load_encoder
from mindvideo.preflight import refusals
from mindvideo.stages import StageContext
from mindvideo.train import adapt, align, animate, cotrain, distill
from mindvideo.train.augmentation import Mixture
from mindvideo.train.ridge import LinearDecoder, fit_linear_decoder

SCANS, FRAMES, SIZE = 12, 3, 32
VERTEX = {1: np.arange(37) * 7, 2: np.arange(29) * 9 + 4}
SEGMENTS = {"train": ["seg1", "seg2"], "validation": ["seg3"], "test": ["test1"]}
COLOURS, THINGS = ("red", "blue", "green"), ("dog", "car", "man", "boat")


def write_store(folder: Path, number: int, recordings: int = 0, split: str = "", runs: int = 0) -> Store:
    """A person's store; ``recordings`` draws those of a ``split`` anew, the films stay; ``runs`` of each film, kept apart."""
    rng, films = np.random.default_rng([number]), np.random.default_rng(9)
    other = np.random.default_rng([number, recordings])
    writer = StoreWriter(
        folder / f"subject{number}.zarr", subject=f"subject{number}", tr_s=1.5, lag_s=4.0, fps=2, size=SIZE,
        splits=SEGMENTS, vertex=VERTEX[number], provenance={"repeats": {"windows": "separate" if runs else "average"}},
    )  # fmt: skip
    scene = 0
    for segment in ("seg1", "seg2", "seg3", "test1"):
        numbers = scene + np.arange(SCANS) // 2
        scene = int(numbers[-1]) + 1
        fmri = rng.standard_normal((SCANS, len(VERTEX[number]))).astype(np.float32)
        if segment in SEGMENTS.get(split, ()):
            fmri = other.standard_normal(fmri.shape).astype(np.float32)
        apart = other.standard_normal((runs, *fmri.shape)).astype(np.float32) if runs else np.stack([fmri, fmri])
        writer.write_fmri(segment, (number + 1) * fmri + 0.5, apart)
        writer.write_frames(segment, films.integers(0, 255, (SCANS, FRAMES, SIZE, SIZE, 3), dtype=np.uint8))
        writer.write_scene(segment, np.repeat(numbers[:, None], FRAMES, axis=1))
        captions = [f"a {COLOURS[n % 3]} {THINGS[n % 4]} walks" for n in numbers]
        writer.write_captions(segment, captions, [[caption] * FRAMES for caption in captions])
    return writer.finish()


def make_recipe(foundation: Path, encoder: str = "areas", **changes: object) -> Recipe:
    common = {"precision": "fp32", "checkpoint_every": 2, "log_every": 1, "batch_size": 3, "steps": 4, "lr": 1e-3}
    return parse_recipe(
        {
            "foundation": str(foundation), "seed": 7, "data": {"subjects": [1, 2]},
            "encoder": {"embed_dim": 12, "depth": 1, "num_heads": 3, "decoder_embed_dim": 8, "decoder_depth": 1,
                        "decoder_num_heads": 2},
            "pretrain": {"enabled": False},
            "adapt": common | {"enabled": encoder == "areas"},
            "align": common | {"steps": 5, "token_weight": 1.0, "val_every": 3, "mixup": 0.7, "teacher_weight": 0.5,
                               "encoder": encoder, "encoder_settings": {"head_rank": 5} if encoder == "areas" else {},
                               "augmentation": "fixed", "synonyms": "listed",
                               "start_from": "adapt" if encoder == "areas" else "scratch"},
            "animate": common,
            "cotrain": common | {"token_weight": 0.5, "input_noise": 0.1},
            "distill": common | {"sampler_steps": 2, "teacher_steps": 2},
        } | changes
    )  # fmt: skip


STAGES = {"adapt": adapt, "align": align, "animate": animate, "cotrain": cotrain, "distill": distill}


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kit(tmp_path_factory.mktemp("foundation"), "test", seed=1)


@pytest.fixture(scope="module")
def finished(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two people after every training stage."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    for number in (1, 2):
        write_store(folder / "prepare", number)
    for name, module in STAGES.items():
        module.run(StageContext.of(make_recipe(kit), folder, name))
    return folder


@pytest.fixture(scope="module")
def stores(finished: Path, kit: Path) -> list[Store]:
    return open_stores(make_recipe(kit).data, finished)


MODELS = {"adapt": "model", "align": "model", "cotrain": "fmri_encoder", "distill": "unet"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def same_bits(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_windows_of_two_people_are_their_own_scans_and_the_same_films(stores: list[Store]) -> None:
    both, apart = Windows(stores, "train", 2), [Windows(store, "train", 2) for store in stores]
    assert both.voxels == [37, 29] and len(both) == 4 * SCANS
    for index in range(len(both)):
        person, own = divmod(index, 2 * SCANS)
        assert both.person[index] == person and both.film[index] == own
        scans, alone = both.fmri(np.array([index])), apart[person].fmri(np.array([own]))
        assert scans.shape == (1, 2, 37) and not scans[..., both.voxels[person] :].any()
        np.testing.assert_array_equal(scans[..., : both.voxels[person]], alone)
        assert both.captions[index] == apart[0].captions[own] and both.scene[index] == apart[0].scene[own]
    np.testing.assert_array_equal(both.frames(np.array([5, 29])), np.repeat(apart[0].frames(np.array([5])), 2, 0))
    np.testing.assert_allclose(both.mean_fmri(1)[:, :29], apart[1].mean_fmri(), rtol=1e-6)
    for store, scans in zip(stores, both.scans, strict=True):
        np.testing.assert_array_equal(scans, np.concatenate([store.fmri(name) for name in store.segments("train")]))


def test_what_films_show_is_read_without_the_recordings(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "fmri", lambda *_: pytest.fail("a recording was read"))
    windows = Windows(stores, "train", 2)
    assert windows.frames(np.array([5])).shape[0] == 1 and len(windows.captions) == len(windows.scene) == 4 * SCANS
    with pytest.raises(pytest.fail.Exception, match="a recording was read"):
        windows.fmri(np.array([5]))


def test_a_batch_holds_both_people_and_no_scene_twice(stores: list[Store]) -> None:
    windows, rng = Windows(stores, "train", 1), np.random.default_rng(3)
    for _ in range(30):
        batch = windows.sample_batch(rng, 8)
        assert len(set(windows.scene[batch])) == 8  # two people's windows of one moment are one scene
    assert {0, 1} == set(windows.person[batch])
    with pytest.raises(DataError, match="found 12; lower batch_size"):
        windows.sample_batch(rng, 13)  # as many scenes as one person saw


def test_people_may_have_other_numbers_of_recordings(tmp_path: Path) -> None:
    stores = [write_store(tmp_path, number, runs=number + 1) for number in (1, 2)]
    both, first = Windows(stores, "train", 2), Windows(stores[0], "train", 2)
    assert np.bincount(both.person).tolist() == [2 * 2 * SCANS, 3 * 2 * SCANS] and len(first) == 2 * 2 * SCANS
    for index, film in enumerate(both.film):  # features have a row for each of the first person's windows
        assert (both.segment[index], both.scan[index], both.captions[index]) == (
            first.segment[film], first.scan[film], first.captions[film]
        )  # fmt: skip
    third = 2 * 2 * SCANS + 2 * SCANS + 5  # of the second person's third recording of the first film
    np.testing.assert_array_equal(both.fmri(np.array([third]))[0, :, :29], stores[1].repeats("seg1")[2, 5:7])
    batch = both.sample_batch(np.random.default_rng(2), 8)
    assert len(set(both.scene[batch])) == 8 and {0, 1} == set(both.person[batch])


def test_partners_are_of_the_same_person() -> None:
    person = np.array([1, 0, 0, 1, 1, 0, 2])
    mix = Mixture(7, 0.8, np.random.default_rng(4), person)
    assert (person[mix.partner] == person).all() and sorted(mix.partner) == list(range(7))
    assert (mix.partner != np.arange(7)).any()
    one, old = Mixture(7, 0.8, np.random.default_rng(4), np.zeros(7, int)), np.random.default_rng(4).permutation(7)
    np.testing.assert_array_equal(one.partner, old)


def test_each_person_has_a_teacher_of_their_own(finished: Path, stores: list[Store]) -> None:
    text = torch.from_numpy(np.asarray(zarr.open_group(finished / "features" / "text", mode="r")["tokens"][:]))
    captions = sorted({"", *Windows(stores, "train", 2).captions, *Windows(stores, "validation", 2).captions})
    for store in stores:
        windows = Windows(store, "train", 2)
        tokens = text[[captions.index(caption) for caption in windows.captions]].float().flatten(1).numpy()
        scans = windows.fmri(np.arange(len(windows))).reshape(len(windows), -1)
        kept = LinearDecoder.open(finished / "features" / f"ridge_{store.subject}.safetensors")
        np.testing.assert_allclose(
            kept.predict(scans), fit_linear_decoder(scans, tokens).predict(scans), rtol=1e-3, atol=1e-3
        )


def test_features_of_the_films_are_made_once(finished: Path, stores: list[Store]) -> None:
    for name in ("image", "latents"):
        for split, rows in (("train", 2 * SCANS), ("validation", SCANS)):
            assert zarr.open_group(finished / "features" / f"{name}_{split}", mode="r")[name].shape[0] == rows
    assert stores[0].shown() == stores[1].shown()


def test_every_persons_maps_learn_and_what_is_behind_them_is_shared(finished: Path, stores: list[Store]) -> None:
    started, trained = weights(finished / "align" / "model"), weights(finished / "cotrain" / "fmri_encoder")
    for person, voxels in enumerate((37, 29)):
        name = f"patch_embed.weight.{person}"
        assert started[name].shape == (voxels, 12) and not torch.equal(started[name], trained[name])
    encoder = load_encoder(finished / "cotrain" / "fmri_encoder").eval()
    windows = Windows(stores, "test", 2)
    fmri, person = torch.from_numpy(windows.fmri(np.arange(24))), torch.from_numpy(windows.person)
    with torch.inference_mode():
        together = encoder(fmri, person)
        apart = [encoder(fmri[row : row + 1], person[row : row + 1])[0] for row in range(24)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-4, atol=1e-5)
    rows = [json.loads(line) for line in (finished / "align" / "metrics.jsonl").open()]
    assert {"validation_token_r2", "ridge_token_r2"} <= rows[-1].keys()
    with pytest.raises(ModelError, match=r"expected 2 stores, one for each person .* found 1"):
        encoder.require_voxels([stores[0].layout], finished)
    with pytest.raises(ModelError, match="expected the 37 voxels"):
        encoder.require_voxels([store.layout for store in reversed(stores)], finished)


def test_no_stage_looks_at_anybodys_test_windows(kit: Path, finished: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        write_store(tmp_path / "run" / "prepare", number, recordings=5, split="test")
    for name, module in STAGES.items():
        module.run(StageContext.of(make_recipe(kit), tmp_path / "run", name))
    assert all(same_bits(tmp_path / "run" / name / model, finished / name / model) for name, model in MODELS.items())


def test_killed_stages_go_on_to_the_same_bits(finished: Path, kit: Path, tmp_path: Path) -> None:
    killed = ("adapt", "align", "cotrain")
    kill_stages(make_recipe(kit), finished, tmp_path, *killed)
    for stage in killed:
        folder = tmp_path / stage / stage
        assert (folder / "state").is_dir() and not (folder / MODELS[stage]).exists()
        STAGES[stage].run(StageContext.of(make_recipe(kit), tmp_path / stage, stage))
        assert same_bits(folder / MODELS[stage], finished / stage / MODELS[stage])


def test_several_people_with_what_is_made_for_one_are_refused(kit: Path) -> None:
    def said(recipe: Recipe) -> str:
        return " ".join(str(error) for error in refusals(recipe))

    assert "align.encoder=paper, which is one person's; give --set align.encoder=areas" in said(
        make_recipe(kit, align={})
    )
    assert "--set baselines=[]" in said(make_recipe(kit, baselines=["ridge"]))
    with pytest.raises(SettingError, match="should name each subject once"):
        make_recipe(kit, data={"subjects": [2, 2]})
    with pytest.raises(SettingError, match="at least 2 items"):
        make_recipe(kit, data={"subjects": [2]})
