"""A user's own method enters the table: the example of docs/baselines.md, and folders of clips."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import zarr
from small_study import FRAMES, SIZE

from mindvideo.baselines.chosen_windows import ChosenWindows
from mindvideo.baselines.folder import find_clips
from mindvideo.baselines.runner import add_folder, list_own_rate_mismatch
from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.errors import DataError
from mindvideo.evaluate.results import read_clip

Cli = Callable[..., tuple[int, str]]
GUIDE = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text()


def test_the_guides_example(
    cli: Cli, run_dir: Path, rival_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "nearest.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (command,) = re.findall(r"^mindvideo (baseline own .*)$", GUIDE, re.MULTILINE)
    command = command.replace("runs/demo/prepare/store.zarr", str(rival_store.path)).replace("runs/demo", str(run_dir))
    code, text = cli(*shlex.split(command))
    assert code == 0, text
    assert "nearest" in text
    clips = zarr.open_group(run_dir / "baselines" / "nearest" / "reconstruct" / "clips.zarr", mode="r")
    truth = clips["truth"][:].mean(axis=(1, 2, 3))
    error = {
        name: np.abs(clips[name][:].mean(axis=(1, 2, 3)) - truth).mean() for name in ("reconstruction", "shuffled")
    }
    assert error["reconstruction"] < 0.8 * error["shuffled"]
    code, text = cli(*shlex.split(command))
    assert "nearest: up to date" in text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def fit(self, store): store.fmri('test1')\n    def reconstruct(self, fmri): ...", "test segment 'test1'"),
        ("def fit(self, store): ...\n    def reconstruct(self, fmri): return fmri", "uint8 clips"),
        ("def fit(self, store): ...", "no reconstruct"),
    ],
)
def test_a_method_that_breaks_the_rules_is_told(
    cli: Cli,
    run_dir: Path,
    rival_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    message: str,
) -> None:
    name = f"broken_{abs(hash(message))}"
    (tmp_path / f"{name}.py").write_text(f"class Method:\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, text = cli("baseline", "own", rival_store.path, "--method", f"{name}:Method", "--name", "x", "--out", run_dir)
    assert code == 1
    assert message in text.replace("\n", " ")
    assert not (run_dir / "baselines" / "x" / "done.json").exists()


def write_gif(path: Path, clip: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=2)
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "rgb8"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_folder_of_clips(cli: Cli, run_dir: Path, rival_recipe: Recipe, rival_store: Store, tmp_path: Path) -> None:
    trial = ChosenWindows(rival_recipe, rival_store)
    folder = tmp_path / "clips"
    folder.mkdir()
    command = ("baseline", "folder", folder, "--name", "mine", "--out", run_dir, "--store", rival_store.path)
    for number, window in enumerate(trial.description):
        name = f"{window['segment']}_{window['scan']}"
        if number == 0:
            write_gif(folder / f"{name}.gif", trial.truth[0])
        elif number == 1:  # twice the frames, twice the size
            np.save(folder / f"{name}.npy", trial.truth[1].repeat(2, 0).repeat(2, 1).repeat(2, 2))
        elif number != 2:
            np.save(folder / f"{name}.npy", trial.truth[number])
    code, text = cli(*command)
    assert code == 1
    assert f"none of {trial.description[2]['segment']}_{trial.description[2]['scan']}" in text.replace("\n", " ")
    missing = trial.description[2]
    np.save(folder / f"{missing['segment']}_{missing['scan']}.npy", trial.truth[2])
    code, text = cli(*command)
    assert code == 0, text
    clips = zarr.open_group(run_dir / "baselines" / "mine" / "reconstruct" / "clips.zarr", mode="r")
    np.testing.assert_array_equal(clips["reconstruction"][1:], trial.truth[1:])
    assert np.abs(clips["reconstruction"][0].astype(int) - trial.truth[0]).mean() < 30  # 256 colours
    np.testing.assert_array_equal(clips["shuffled"][:], clips["reconstruction"][:][trial.other])
    scores = json.loads((run_dir / "baselines" / "mine" / "evaluate" / "scores.json").read_text())
    assert "mean" not in scores["ssim_rgb"]["controls"]
    rows = json.loads((run_dir / "baselines" / "table.json").read_text())
    assert rows[0]["seconds"] is None
    names = sorted(row["method"] for row in rows)
    pairs = json.loads((run_dir / "baselines" / "differences.json").read_text())
    assert len(pairs) == len(names) * (len(names) - 1) // 2
    for pair, found in pairs.items():
        second, first = pair.split(" − ")
        values = {row["method"]: row["scores"] for row in rows}
        for name, entry in found.items():
            assert entry["design"] == "paired" and entry["p_holm"] >= entry["p"]
            assert entry["difference"] == pytest.approx(values[second][name]["value"] - values[first][name]["value"])
    code, text = cli("baseline", "folder", folder, "--name", "gan", "--out", run_dir, "--store", rival_store.path)
    assert code == 1
    assert "another name" in text


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no film")
    np.save(tmp_path / "b.npy", np.full((FRAMES, SIZE, SIZE, 3), 2, np.float32))
    for name, word in (("a.mp4", "film"), ("b.npy", "uint8")):
        with pytest.raises(DataError, match=word):
            read_clip(tmp_path / name)


def test_the_file_of_a_window_whatever_the_case_of_its_suffix_and_the_form_of_its_accents(tmp_path: Path) -> None:
    composed, taken_apart = "Caf\u00e9", "Cafe\u0301"
    for name in (f"{taken_apart}_0.MP4", f"{composed}_1.Mkv", f"{composed}_2.npy", "notes.txt"):
        (tmp_path / name).touch()
    names = [f"{composed}_1", f"{composed}_0"]
    assert [path.name for path in find_clips(tmp_path, names)] == [f"{composed}_1.Mkv", f"{taken_apart}_0.MP4"]
    (tmp_path / f"{composed}_1.webm").touch()
    with pytest.raises(DataError, match=r"one file for each test window .*_1\.Mkv, .*_1\.webm"):
        find_clips(tmp_path, names)


def test_clips_made_at_another_rate_are_not_judged_by_how_they_move(
    run_dir: Path, rival_recipe: Recipe, rival_store: Store, tmp_path: Path
) -> None:
    for counts, is_said in (
        ([FRAMES], False),
        ([FRAMES, 2 * FRAMES], False),
        ([FRAMES, FRAMES + 1], True),
        ([2], True),
    ):
        group = zarr.open_group(tmp_path / f"{counts}.zarr", mode="w", attributes={"frames_made": counts})
        assert bool(list_own_rate_mismatch(group, FRAMES)) == is_said, counts
    trial, folder = ChosenWindows(rival_recipe, rival_store), tmp_path / "clips"
    folder.mkdir()
    for clip, window in zip(trial.truth, trial.description, strict=True):
        np.save(folder / f"{window['segment']}_{window['scan']}.npy", clip[:2])  # of three frames shown, one twice
    add_folder("slow", folder, rival_recipe, run_dir, rival_store.path)
    about = json.loads((run_dir / "baselines" / "slow" / "evaluate" / "evaluation.json").read_text())
    scores = json.loads((run_dir / "baselines" / "slow" / "evaluate" / "scores.json").read_text())
    assert "2 frames a scan do not move like 3" in about["left_out"]["frame_change"]
    assert "frame_change" not in scores and "ssim_rgb" in scores


def test_commands_without_a_recipe_or_with_wrong_names(cli: Cli, rival_store: Store, tmp_path: Path) -> None:
    code, text = cli("baseline", "linear", rival_store.path, "--out", tmp_path / "new")
    assert code == 1
    assert "--recipe" in text
    code, text = cli("run", "demo", "--out", tmp_path / "new", "--set", "baselines=[rigde]")
    assert code == 1
    assert "baselines" in text
    code, text = cli("run", "demo", "--out", tmp_path / "new", "--set", "baseline.gan.step=3")
    assert code == 1
    assert "baseline.gan.steps" in text


def test_without_the_package_the_rest_works(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import importlib, importlib.abc, pkgutil, sys

        class Removed(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "mindvideo.baselines" or name.startswith("mindvideo.baselines."):
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Removed())
        import mindvideo
        names = [m.name for m in pkgutil.walk_packages(mindvideo.__path__, "mindvideo.", onerror=lambda name: None)]
        for name in names:
            if "baselines" not in name.split(".")[1:2] and not name.endswith("__main__"):
                importlib.import_module(name)
        from mindvideo.cli import main
        sys.argv = ["mindvideo", "baseline", "linear", "store", "--out", sys.argv[1]]
        main()
        """
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "removed from this installation" in result.stderr
