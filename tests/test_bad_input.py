"""Bad input at the command line: one sentence, a non-zero exit, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr

from kit.parts import build_kit
from mindvideo.config import Recipe, load_recipe, save_recipe
from mindvideo.data.cifti import write_cortex
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store
from mindvideo.errors import ModelError
from mindvideo.models.encoders import load_encoder
from mindvideo.models.foundation import Foundation
from mindvideo.models.part_config import read_part_config
from mindvideo.train.features import Features

Cli = Callable[..., tuple[int, str]]
TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture
def raw(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny subject's recordings to damage."""
    return shutil.copytree(tiny_run / "simulate", tmp_path / "raw")


def _fmri(raw: Path, segment: str, run: int) -> Path:
    return raw / "subject1" / "fmri" / segment / "cifti" / f"{segment}_{run}_Atlas.dtseries.nii"


def _rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    recording = read_cortex(path)
    write_cortex(path, change(np.array(recording.data)), recording.vertex, recording.tr_s)


def _call_prepare(cli: Cli, raw: Path, out: Path) -> tuple[int, str]:
    return cli(
        "prepare", "wen2018", raw, "--out", out, "--size", 32, "--selection", "top_k", "--k", 400,
        "--captions", raw / "truth" / "captions.json",
    )  # fmt: skip


def _prepare(cli: Cli, raw: Path, out: Path) -> str:
    """Run prepare, expect a refusal, and return its one sentence."""
    code, text = _call_prepare(cli, raw, out)
    assert code == 1, text
    _expect_one_sentence(text)
    assert not out.exists()
    return text


def _expect_one_sentence(text: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in text


def test_intact_recordings_prepare(cli: Cli, raw: Path, tmp_path: Path) -> None:
    code, text = cli(
        "prepare", "wen2018", raw, "--out", tmp_path / "store", "--size", 32, "--selection", "top_k", "--k", 400,
        "--captions", raw / "truth" / "captions.json",
    )  # fmt: skip
    assert code == 0, text
    code, text = cli("inspect", tmp_path / "store")
    assert code == 0
    assert "400" in text


def test_missing_run(cli: Cli, raw: Path, tmp_path: Path) -> None:
    _fmri(raw, "seg3", 2).unlink()
    assert "seg3" in _prepare(cli, raw, tmp_path / "store")


def test_run_with_another_number_of_volumes(cli: Cli, raw: Path, tmp_path: Path) -> None:
    _rewrite(_fmri(raw, "seg2", 1), lambda data: data[:-3])
    text = _prepare(cli, raw, tmp_path / "store")
    assert "seg2_1" in text
    assert "22" in text
    assert "25" in text


@pytest.mark.parametrize("bad", [np.nan, 7.0])
def test_nan_or_constant_vertices_are_left_out_and_counted(cli: Cli, raw: Path, tmp_path: Path, bad: float) -> None:
    def change(data: np.ndarray) -> np.ndarray:
        data[:, 11] = bad
        return data

    _rewrite(_fmri(raw, "seg1", 2), change)
    code, text = _call_prepare(cli, raw, tmp_path / "store")
    assert code == 0 and "no signal in some run (1)" in text
    assert any("no signal in some run (1)" in remark for remark in Store.open(tmp_path / "store").remarks)


def test_truncated_cifti(cli: Cli, raw: Path, tmp_path: Path) -> None:
    path = _fmri(raw, "test1", 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "test1_1" in _prepare(cli, raw, tmp_path / "store")


def test_not_a_cifti(cli: Cli, raw: Path, tmp_path: Path) -> None:
    path = _fmri(raw, "seg1", 1)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 25), np.float32), np.eye(4)), raw / "volume.nii")
    shutil.move(raw / "volume.nii", path)
    assert "seg1_1" in _prepare(cli, raw, tmp_path / "store")


def test_corrupt_video(cli: Cli, raw: Path, tmp_path: Path) -> None:
    path = raw / "stimuli" / "seg2.mp4"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    path.write_bytes(bytes(content))
    assert "seg2.mp4" in _prepare(cli, raw, tmp_path / "store")


def test_short_video(cli: Cli, raw: Path, tmp_path: Path) -> None:
    from mindvideo.data.video import read_frames, write_video

    path = raw / "stimuli" / "seg4.mp4"
    frames = read_frames(path, np.arange(0, 31, 1 / 10), 32)
    write_video(path, iter(frames), 10, 32)
    assert "seg4" in _prepare(cli, raw, tmp_path / "store")


def test_stimulus_without_recording(cli: Cli, raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "subject1" / "fmri" / "seg3")
    assert "seg3" in _prepare(cli, raw, tmp_path / "store")


def test_recording_without_stimulus(cli: Cli, raw: Path, tmp_path: Path) -> None:
    (raw / "stimuli" / "test2.mp4").unlink()
    assert "test2" in _prepare(cli, raw, tmp_path / "store")


def test_store_of_another_version(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    store = shutil.copytree(tiny_run / "prepare" / "store.zarr", tmp_path / "store.zarr")
    zarr.open_group(store, mode="r+").attrs["version"] = 99
    code, text = cli("inspect", store)
    assert code == 1
    _expect_one_sentence(text)
    assert "99" in text


def test_foundation_with_a_part_missing(cli: Cli, tiny_recipe: Recipe, random_kit: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    shutil.rmtree(kit / "image_encoder")
    text = _refused_run(cli, tiny_recipe, tmp_path, kit)
    assert "image_encoder" in text


def test_foundation_of_another_width(cli: Cli, tiny_recipe: Recipe, random_kit: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    config = json.loads((kit / "unet" / "config.json").read_text())
    (kit / "unet" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 48}))
    text = _refused_run(cli, tiny_recipe, tmp_path, kit)
    assert "48" in text
    assert "32" in text


@pytest.mark.parametrize(
    ("part", "name", "value", "wanted"),
    [
        ("text_encoder", "hidden_size", None, "a whole number"),
        ("text_encoder", "max_position_embeddings", "64", "a whole number"),
        ("text_encoder", "text_config", [1], "a mapping"),
        ("vae", "block_out_channels", None, "a list"),
        ("unet", "cross_attention_dim", None, "a whole number"),
        ("video_classifier", "id2label", 5, "a mapping"),
    ],
)
def test_a_configuration_with_a_value_of_another_type(
    part: str, name: str, value: object, wanted: str, cli: Cli, random_kit: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(random_kit / part, tmp_path / part) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ModelError, match=f"expected {wanted} as {name} in .* fetch the part '{part}' again"):
        read_part_config(tmp_path, part)


def test_check_of_a_configuration_with_a_value_of_another_type(cli: Cli, random_kit: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    path = kit / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": None}))
    code, text = cli("check", TINY, "--set", f"foundation={kit}", "--out", tmp_path / "run")
    assert code == 1
    assert "expected a whole number as hidden_size in" in text
    assert "Traceback" not in text


def test_a_generator_for_inpainting(random_kit: Path, tmp_path: Path) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    config = json.loads((kit / "unet" / "config.json").read_text())
    (kit / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    with pytest.raises(
        ModelError,
        match=r"in_channels of the part 'unet' to be the VAE's channels 4, found 9 .* not one for inpainting",
    ):
        Foundation(kit).require("unet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta_schedule": "karras"}, "expected the part 'scheduler' .* to load, found: karras is not implemented"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "of diffusion, found FlowMatchEulerDiscreteScheduler in"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, None),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "linspace"}, None),
    ],
)
def test_schedulers_of_other_kinds(
    change: dict[str, object], said: str | None, random_kit: Path, tmp_path: Path
) -> None:
    kit = shutil.copytree(random_kit, tmp_path / "kit")
    path = kit / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with nullcontext() if said is None else pytest.raises(ModelError, match=said):
        Foundation(kit).open("scheduler")


def _refused_run(cli: Cli, recipe: Recipe, tmp_path: Path, kit: Path) -> str:
    save_recipe(recipe, tmp_path / "recipe.yaml")
    code, text = cli("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--set", f"foundation={kit}")
    assert code == 1
    _expect_one_sentence(text)
    assert not (tmp_path / "run").exists()
    return text


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 60 kB, as under a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_in_prepare_leaves_a_store_that_says_it_is_incomplete(
    cli: Cli, raw: Path, tmp_path: Path, small_disk: None
) -> None:
    out = tmp_path / "store"
    code, text = cli(
        "prepare", "wen2018", raw, "--out", out, "--size", 64, "--selection", "top_k", "--k", 1600,
        "--captions", raw / "truth" / "captions.json",
    )  # fmt: skip
    assert code == 1, text
    _expect_one_sentence(text)
    code, text = cli("inspect", out)
    assert code == 1
    _expect_one_sentence(text)


def test_full_disk_in_training_goes_on_afterwards(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(tiny_run, tmp_path / "copy")
    shutil.rmtree(run_dir / "align")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code, text = cli("align", run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1, text
    _expect_one_sentence(text)
    assert not (run_dir / "align" / "model").exists()
    assert not (run_dir / "align" / "done.json").exists()
    code, text = cli("align", run_dir)
    assert code == 0, text


def test_voxels_of_another_subject(tiny_run: Path, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(tiny_run / "prepare" / "store.zarr", tmp_path / "store.zarr"))
    encoder = load_encoder(tiny_run / "cotrain" / "fmri_encoder")
    encoder.require_voxels([store.layout], "cotrain")
    group = zarr.open_group(store.path, mode="r+")
    group["vertex"][0] += 1
    with pytest.raises(ModelError, match="voxels of another subject"):
        encoder.require_voxels([Store.open(store.path).layout], "cotrain")


@pytest.mark.parametrize(
    ("file", "stage", "setting"),
    [
        ("reconstruct/clips.zarr/reconstruction/c/3/0/0/0/0", "reconstruct", "evaluate.permutations=100"),
        ("prepare/store.zarr/frames/seg1/zarr.json", "prepare", "explain.max_windows=11"),
        ("align/model/config.json", "align", "cotrain.steps=5"),
    ],
)
def test_a_damaged_run_folder(cli: Cli, tiny_run: Path, tmp_path: Path, file: str, stage: str, setting: str) -> None:
    run_dir = shutil.copytree(tiny_run, tmp_path / "copy")
    (run_dir / file).unlink()
    code, text = cli("run", run_dir / "recipe.yaml", "--out", run_dir, "--set", setting)
    assert code == 1
    _expect_one_sentence(text)
    assert str(run_dir / file) in text and f"'{stage}' is then made anew" in text


@pytest.mark.parametrize("damage", ["gone", "flipped", "metadata"])
def test_damaged_features_are_made_anew(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path, damage: str) -> None:
    run_dir = shutil.copytree(tiny_run, tmp_path / "copy")
    table = run_dir / "features" / "latents_train"
    whole = zarr.open_array(table / "latents", mode="r")[...]
    chunk = next(path for path in sorted((table / "latents" / "c").rglob("*")) if path.is_file())
    content = bytearray(chunk.read_bytes())
    if damage == "gone":
        chunk.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 16
        chunk.write_bytes(bytes(content))
    else:
        (table / "zarr.json").write_text("{")
    store = Store.open(run_dir / "prepare" / "store.zarr")
    found = Features(run_dir, store, Foundation(tiny_recipe.foundation)).latents("train")
    np.testing.assert_array_equal(found.numpy(), whole)


def test_misspelt_setting(cli: Cli, tmp_path: Path) -> None:
    code, text = cli("run", "demo", "--out", tmp_path / "run", "--set", "align.learning_rate=1")
    assert code == 1
    assert "align.lr" in text
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(cli: Cli, tmp_path: Path) -> None:
    for command in ("evaluate", "report", "align"):
        code, text = cli(command, tmp_path)
        assert code == 1
        assert "recipe.yaml" in text


def test_options_that_would_do_nothing_are_refused(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("evaluate", tiny_run, "--size", 32), "for clips only"),
        (("evaluate", tiny_run, "--fit", "crop"), "for clips only"),
        (("evaluate", tiny_run, "--block", 10), "for clips only"),
        (("evaluate", tmp_path, "--set", "evaluate.block_s=4"), "--block"),
        (("reconstruct", tiny_run, "--seed", 5), "--set seed=NUMBER"),
        (("report", tiny_run, tiny_run), "--out"),
    ):
        code, text = cli(*arguments)
        assert code == 1 and words in " ".join(text.split()), text
        _expect_one_sentence(text)


def test_the_folder_one_is_in_and_one_that_is_not_there_yet(
    cli: Cli, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = cli("evaluate", ".")
    assert code == 1
    _expect_one_sentence(text)
    code, text = cli("export", tiny_run / "prepare" / "store.zarr", tmp_path / "new" / "deep" / "out.npz")
    assert code == 0, text
    with np.load(tmp_path / "new" / "deep" / "out.npz") as arrays:
        assert arrays["fmri_test"].shape == (2, 20, 400)


def test_simulate_takes_the_seed_of_the_recipe(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr("mindvideo.simulate.recordings.simulate", lambda _, out, seed, **more: seeds.append(seed))
    monkeypatch.setattr("mindvideo.simulate.recordings.simulate_pretraining", lambda *more, **others: None)
    for options in (("--set", "seed=7"), ("--seed", 3), ()):
        assert cli("simulate", tmp_path / "out", *options)[0] == 0
    assert seeds == [7, 3, load_recipe("demo").seed]


def test_a_kit_follows_from_its_seed(tmp_path: Path) -> None:
    first, second = build_kit(tmp_path / "a", "test", seed=0), build_kit(tmp_path / "b", "test", seed=0)
    for part in ("vae", "unet", "tokenizer"):
        for path in sorted((first / part).iterdir()):
            assert path.read_bytes() == (second / part / path.name).read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "demo", "--until", "simulate", "--out"),
        ("report", "RUN", "--out"),
        ("compare", "RUN", "OTHER", "--out"),
        ("ablate", "demo", "--only", "no_guidance", "--out"),
        ("export", "RUN/prepare/store.zarr"),
        ("inspect", "RUN/prepare/store.zarr", "--out"),
        ("reconstruct", "RUN", "test1", "--steps", 1, "--scans", 2, "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(
    command: tuple[object, ...], cli: Cli, tiny_run: Path, tmp_path: Path
) -> None:
    if "OTHER" in command:
        shutil.copytree(tiny_run / "evaluate", tmp_path / "other" / "evaluate")
    (tmp_path / "file").write_text("mine")
    places = {
        "RUN": tiny_run,
        "OTHER": tmp_path / "other",
        "RUN/prepare/store.zarr": tiny_run / "prepare" / "store.zarr",
    }
    code, text = cli(*(places.get(str(word), word) for word in command), tmp_path / "file" / "film.mp4")
    assert code == 1 and str(tmp_path / "file") in text, text
    _expect_one_sentence(text)
    assert "free space" not in text
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_in_the_folder_one_is_in(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "study"
    place.mkdir()
    monkeypatch.chdir(place)
    small = {"segment_s": 8, "test_segments": 1, "pretrain_people": 1, "areas": "visual"}
    settings = [word for name, value in small.items() for word in ("--set", f"simulate.{name}={value}")]
    code, text = cli("run", TINY, "--out", ".", "--until", "simulate", *settings)
    assert code == 0, text
    assert (place / "recipe.yaml").is_file() and (place / "simulate" / "done.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


def test_control_c_says_how_to_go_on(cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mindvideo.study.Study.status", stop)
    assert cli("status", tiny_run) == (130, "stopped; run the same command again to go on\n")


def test_a_terminal_without_the_letters(tiny_run: Path) -> None:
    """As of a file's name that is not UTF-8, or of a terminal in Latin-1."""
    found = subprocess.run(
        [sys.executable, "-m", "mindvideo.cli", "status", str(tiny_run), "--set", "align.lr=0.25"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"align: stale ? align.lr " in found.stdout and b" ? 0.25" in found.stdout


@pytest.mark.parametrize("minutes", ["nan", "0,nan", "0,inf", "inf", "5,5", "-1", "5,", "all,5"])
def test_minutes_that_are_none(minutes: str, cli: Cli, tmp_path: Path) -> None:
    code, text = cli("people", "people", "--leave-out", 3, f"--minutes={minutes}", "--out", tmp_path / "curve")
    assert code == 1 and f"such as 0,15,60,all, found '{minutes}'" in text
    assert not (tmp_path / "curve").exists()


def test_a_rate_counts_by_the_scans_of_the_store(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(tiny_run, tmp_path / "run")
    recipe = run_dir / "recipe.yaml"
    assert "  tr_s: 2.0\n" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("  tr_s: 2.0\n", "  tr_s: null\n"))  # the recordings' own
    text = cli("reconstruct", run_dir, "--fps", 2.25)[1]
    assert "expected a whole number of frames in a scan of 2 s, found 4.5" in text, text
