"""A new person: what the first minutes hold, maps by mean and by ridge, what is trained and what never, and the whole command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from kit.parts import build_kit
from mindvideo import atlas
from mindvideo.config import Recipe, parse_recipe, save_recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import SettingError
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.newcomer import LeftOut
from mindvideo.newcomer.minutes import FirstMinutes
from mindvideo.newcomer.own_maps import encoder_of_newcomer, maps_of, start_by_ridge
from mindvideo.voxel_layout import VoxelLayout

Cli = Callable[..., tuple[int, str]]
SCANS, FRAMES, SIZE = 16, 3, 32
SEGMENTS = {"train": ["seg1", "seg2"], "validation": ["seg3"], "test": ["test1"]}
COLOURS, THINGS = ("red", "blue", "green"), ("dog", "car", "man", "boat")
AREAS = ("V1", "V2", "MT")


def vertices(skip: int) -> np.ndarray:
    """Of three areas on both sides, all but some."""
    found = np.concatenate([atlas.area_of(name)[skip :: 40 + skip] for name in AREAS])
    return found[atlas.hierarchy_order(found)].astype(np.int32)


def write_store(folder: Path, number: int, recordings: int = 0, splits: tuple[str, ...] = ()) -> Store:
    """A person's store; ``recordings`` draws those of some ``splits`` anew, the films stay."""
    rng, films = np.random.default_rng([number]), np.random.default_rng(9)
    other, vertex = np.random.default_rng([number, recordings]), vertices(number)
    writer = StoreWriter(folder / f"subject{number}.zarr", subject=f"subject{number}", tr_s=1.5, lag_s=4.0, fps=2, size=SIZE,
                         splits=SEGMENTS, vertex=vertex)  # fmt: skip
    scene = 0
    for segment in ("seg1", "seg2", "seg3", "test1"):
        numbers = scene + np.arange(SCANS) // 2
        scene = int(numbers[-1]) + 1
        runs = rng.standard_normal((2, SCANS, len(vertex))).astype(np.float32)
        if any(segment in SEGMENTS[split] for split in splits):
            runs = other.standard_normal(runs.shape).astype(np.float32)
        writer.write_fmri(segment, runs.mean(0), runs)
        writer.write_frames(segment, films.integers(0, 255, (SCANS, FRAMES, SIZE, SIZE, 3), dtype=np.uint8))
        writer.write_scene(segment, np.repeat(numbers[:, None], FRAMES, axis=1))
        captions = [f"a {COLOURS[n % 3]} {THINGS[n % 4]} walks" for n in numbers]
        writer.write_captions(segment, captions, [[caption] * FRAMES for caption in captions])
    return writer.finish()


def test_the_first_runs_of_all_films_come_first(tmp_path: Path) -> None:
    store = write_store(tmp_path, 1)  # 16 scans of 1.5 s a run: .4 minutes
    for minutes, kept in ((0.1, {"seg1": (1, 4)}), (0.4, {"seg1": (1, 16)}), (0.6, {"seg1": (1, 16), "seg2": (1, 8)}),
                          (0.8, {"seg1": (1, 16), "seg2": (1, 16)}), (1.1, {"seg1": (1, 16), "seg2": (1, 16)}),
                          (1.2, {"seg1": (2, 16), "seg2": (1, 16)}), (None, {"seg1": (2, 16), "seg2": (2, 16)})):  # fmt: skip
        first = FirstMinutes.of(store, minutes)
        assert first.kept == kept and first.segments("validation") == [] and first.segments("test") == ["test1"]
        windows = Windows(first, "train", 2)
        assert len(windows) == sum(scans for _, scans in kept.values())
        for name, (runs, scans) in kept.items():
            np.testing.assert_allclose(first.fmri(name), store.repeats(name)[:runs, :scans].mean(0), atol=1e-6)
        if minutes == 0.6:  # the last window's second scan is not looked at beyond the minutes
            np.testing.assert_array_equal(*windows.fmri(np.array([23]))[0])
            assert first.minutes == pytest.approx(0.6)


def two_people() -> tuple[AreaEncoder, list[VoxelLayout]]:
    labels = atlas.area_labels()
    layouts = [VoxelLayout(len(v), str(n), v, labels[v]) for n, v in ((n, vertices(n)) for n in (1, 2, 3))]
    torch.manual_seed(3)
    sizes = {"window": 2, "condition_length": 5, "condition_width": 6, "input_mean": 0.2, "input_scale": 1.5}
    architecture = {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
    return AreaEncoder.build(layouts[:2], sizes, architecture, head_rank=4, dropout=0.0).eval(), layouts


def test_without_minutes_the_maps_are_the_mean_of_the_others_on_the_same_vertices() -> None:
    shared, layouts = two_people()
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own = encoder_of_newcomer(shared, layouts[2]).eval()
    theirs, mine = maps_of(shared), maps_of(own)
    for row, voxel in enumerate(mine.rows(0)):
        vertex, found = layouts[2].vertex[voxel], []
        for person in (0, 1):
            where = np.flatnonzero(layouts[person].vertex[theirs.rows(person)] == vertex)
            found += [theirs.weight[person][at] for at in where]
        expected = torch.stack(found).mean(0) if found else torch.zeros(8)
        torch.testing.assert_close(mine.weight[0][row], expected)
    torch.testing.assert_close(mine.bias[0], theirs.bias.mean(0))
    for name, weight in shared.state_dict().items():
        if "patch_embed.weight" not in name and "patch_embed.bias" not in name:
            assert torch.equal(own.state_dict()[name], weight), name
    elsewhere = atlas.area_of("FEF")[:9].astype(np.int32)
    with pytest.raises(SettingError, match="areas that the others have voxels in"):
        encoder_of_newcomer(shared, VoxelLayout(9, "x", elsewhere, atlas.area_labels()[elsewhere]))


@torch.no_grad()
def tokens_of(encoder: AreaEncoder, fmri: np.ndarray, person: int) -> torch.Tensor:
    padded = np.zeros((len(fmri), maps_of(encoder).voxels), np.float32)
    padded[:, : fmri.shape[1]] = fmri
    return maps_of(encoder).encode(torch.from_numpy((padded - 0.2) / 1.5), torch.full((len(fmri),), person))


def mean_tokens(shared: AreaEncoder, others: list[np.ndarray]) -> torch.Tensor:
    return (tokens_of(shared, others[0], 0) + tokens_of(shared, others[1], 1)) / 2


def test_ridge_finds_maps_that_give_the_others_mean_tokens() -> None:
    shared, layouts = two_people()
    rng = np.random.default_rng(5)
    latent, maps = rng.standard_normal((300, 3)), maps_of(shared)  # what all three brains answer to, in every area
    scans = []
    for layout in layouts:
        mixing = rng.standard_normal((3, layout.num_voxels))
        scans.append((latent @ mixing + 0.05 * rng.standard_normal((300, layout.num_voxels))).astype(np.float32))
    own = encoder_of_newcomer(shared, layouts[2])
    about = start_by_ridge(own, shared, scans[2][:200], [part[:200] for part in scans[:2]])
    assert about["r2"] > 0.95

    wanted = mean_tokens(shared, [part[200:] for part in scans[:2]])
    error = (tokens_of(own, scans[2][200:], 0) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert float(error) < 0.05 and maps.num_areas == 6


def test_ridge_penalises_the_distance_from_the_mean_of_the_others_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindvideo.newcomer.own_maps.ALPHAS", np.array([7.0]))
    shared, layouts = two_people()
    rng = np.random.default_rng(6)
    scans = [rng.standard_normal((40, layout.num_voxels)).astype(np.float32) for layout in layouts[:2]]
    mine = rng.standard_normal((40, layouts[0].num_voxels)).astype(np.float32)
    own = encoder_of_newcomer(shared, layouts[0])
    maps = maps_of(own)
    before, bias = maps.weight[0].detach().clone().numpy(), maps.bias.detach().clone().numpy()
    target = mean_tokens(shared, scans).numpy() - maps.positions.numpy()
    start_by_ridge(own, shared, mine, scans)
    scaled, first = (mine - 0.2) / 1.5, 0
    for area, voxels in enumerate(maps.members[0]):
        rows = slice(first, first := first + len(voxels))
        left = target[:, area] - scaled[:, voxels] @ before[rows] - bias[0, area]
        expected = before[rows] + Ridge(alpha=7.0).fit(scaled[:, voxels], left).coef_.T
        np.testing.assert_allclose(maps.weight[0].detach().numpy()[rows], expected, atol=1e-5)


def make_recipe(raw: Path, foundation: Path) -> Recipe:
    common = {"precision": "fp32", "checkpoint_every": 2, "log_every": 1, "batch_size": 3, "steps": 3, "lr": 1e-3}
    return parse_recipe(
        {
            "foundation": str(foundation), "seed": 7,
            "data": {"source": "store", "raw": str(raw), "subjects": [1, 2, 3], "selection": "all", "tr_s": 1.5, "fps": 2,
                     "size": SIZE},
            "encoder": {"embed_dim": 12, "depth": 1, "num_heads": 3, "decoder_embed_dim": 8, "decoder_depth": 1,
                        "decoder_num_heads": 2},
            "pretrain": {"enabled": False},
            "adapt": common,
            "align": common | {"token_weight": 1.0, "encoder": "areas", "encoder_settings": {"head_rank": 5},
                               "augmentation": "fixed", "synonyms": "listed", "mixup": 0.5},
            "animate": common, "cotrain": common,
            "reconstruct": {"steps": 2, "batch_size": 8, "precision": "fp32"},
            "evaluate": {"block_s": 3, "permutations": 99, "bootstraps": 99, "captions": False},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kit(tmp_path_factory.mktemp("foundation"), "test", seed=1)


def run_people(cli: Cli, folder: Path, kit: Path, minutes: str) -> str:
    save_recipe(make_recipe(folder / "raw", kit), folder / "recipe.yaml")
    code, text = cli("people", folder / "recipe.yaml", "--leave-out", 3, "--minutes", minutes, "--out", folder / "out")
    assert code == 0, text
    return text


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def same_bits(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def write_people(folder: Path, splits: tuple[str, ...] = ()) -> Path:
    for number in (1, 2):
        write_store(folder / "raw", number)
    write_store(folder / "raw", 3, recordings=5, splits=splits)
    return folder


@pytest.fixture(scope="module")
def finished(cli: Cli, kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole command, done."""
    folder = write_people(tmp_path_factory.mktemp("here"))
    run_people(cli, folder, kit, "0,0.4,all")
    return folder


def test_a_command_that_was_killed_goes_on_to_the_same_bits(
    finished: Path, cli: Cli, kit: Path, tmp_path: Path
) -> None:
    folder = write_people(tmp_path / "killed")
    shutil.copytree(finished / "out", folder / "out", symlinks=True)
    shutil.rmtree(folder / "out" / "shared-0.4")
    save_recipe(make_recipe(folder / "raw", kit), folder / "recipe.yaml")
    command = [sys.executable, "-m", "mindvideo.cli", "people", folder / "recipe.yaml", "--leave-out", 3, "--minutes", "0,0.4,all",
               "--out", folder / "out"]  # fmt: skip
    died = subprocess.run(list(map(str, command)), env={**os.environ, "MINDVIDEO_TEST_KILL": "maps:2"}, check=False)
    assert died.returncode == -9
    assert (folder / "out/shared-0.4/maps/state").is_dir() and not (folder / "out/shared-0.4/encoder").exists()
    said = run_people(cli, folder, kit, "0,0.4,all")
    assert "shared-0.4: done" in said and "none-0: up to date" in said and "ridge-all: up to date" in said
    assert same_bits(folder / "out/shared-0.4/encoder", finished / "out/shared-0.4/encoder")
    assert json.loads((folder / "out/people.json").read_text()) == json.loads(
        (finished / "out/people.json").read_text()
    )


def test_the_whole_command_and_what_never_reaches_training(finished: Path, cli: Cli, kit: Path, tmp_path: Path) -> None:
    here, test, all_of_them = finished, tmp_path / "test", tmp_path / "all"
    for folder, splits in ((test, ("test",)), (all_of_them, ("train", "test"))):
        write_people(folder, splits)
    content = json.loads((here / "out" / "people.json").read_text())
    arms = [(row["arm"], row["minutes"]) for row in content["rows"]]
    assert arms == [("none", 0.0), *((arm, m) for m in (0.4, None) for arm in ("shared", "scratch", "ridge"))]
    for row in content["rows"]:
        assert {"token_r2", "ssim_rgb"} <= row["scores"].keys()
        assert row["scores"]["token_r2"]["controls"].keys() == {"shuffled"} and row["scores"]["token_r2"]["n"] == SCANS
    assert [row["used_minutes"] for row in content["rows"]] == pytest.approx([0, 0.4, 0.4, 0.4, 1.6, 1.6, 1.6])
    assert len(content["differences"]) == 2 * 2 + 2
    page = (here / "out" / "index.html").read_text()
    assert "Subject 3 from minutes of scanner time" in page and page.count("<polyline") >= 3

    # everything behind the maps is the others', and the maps have learned
    shared, own = weights(here / "out/others/cotrain/fmri_encoder"), weights(here / "out/shared-0.4/encoder")
    for name, weight in own.items():
        assert torch.equal(weight, shared[name]) != name.startswith(("patch_embed.weight", "patch_embed.bias")), name
    assert not same_bits(here / "out/shared-0.4/encoder", here / "out/none-0/encoder")

    # other test recordings of the new person: the same weights; other recordings altogether: without minutes, the same too
    for folder, minutes in ((test, "0,0.4"), (all_of_them, "0,0.4")):
        shutil.copytree(here / "out/others", folder / "out/others", symlinks=True)
        run_people(cli, folder, kit, minutes)
        assert same_bits(folder / "out/others/cotrain/fmri_encoder", here / "out/others/cotrain/fmri_encoder")
        assert same_bits(folder / "out/none-0/encoder", here / "out/none-0/encoder")
    for arm in ("shared", "scratch"):
        assert same_bits(test / f"out/{arm}-0.4/encoder", here / f"out/{arm}-0.4/encoder")
        assert not same_bits(all_of_them / f"out/{arm}-0.4/encoder", here / f"out/{arm}-0.4/encoder")
    assert same_bits(test / "out/ridge-0.4", here / "out/ridge-0.4")


def test_what_cannot_be_left_out_is_refused(kit: Path, tmp_path: Path, cli: Cli) -> None:
    recipe = make_recipe(tmp_path, kit)
    for change, subject, words in (
        ({}, 4, "--leave-out one of at least two data.subjects, found 4"),
        ({"align": recipe.align.model_copy(update={"encoder": "paper"})}, 3, "--set align.encoder=areas"),
        ({"data": recipe.data.model_copy(update={"selection": "paper"})}, 3, "--set data.selection=all"),
    ):
        with pytest.raises(SettingError, match=words):
            LeftOut(recipe.model_copy(update=change), subject, [None]).require()
    code, text = cli("people", "people", "--leave-out", 3, "--minutes", "15,5", "--out", tmp_path / "out")
    assert code == 1 and "rising numbers" in text and not (tmp_path / "out").exists()
