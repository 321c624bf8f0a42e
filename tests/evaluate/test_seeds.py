"""Comparisons over several seeds: runs and rivals are pooled with their other seeds, and the spread is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindvideo.baselines.summary import collect, compare_methods, write_table
from mindvideo.errors import DataError
from mindvideo.evaluate.compare import compare_folders, seed_folders

N, SEEDS = 12, 3


def make_evaluation(folder: Path, ssim: np.ndarray, p_holm: float = 0.01) -> None:
    """An evaluation of windows in blocks of two."""
    (folder / "evaluate").mkdir(parents=True)
    entry = {
        "value": float(ssim.mean()), "interval": [0.0, 1.0], "n": N, "definition": "similarity", "higher_is_better": True,
        "controls": {"shuffled": float(ssim.mean()) - 0.1}, "roles": {"shuffled": "control"}, "is_main": True,
        "p": {"shuffled": p_holm / 2}, "p_holm": {"shuffled": p_holm},
    }  # fmt: skip
    (folder / "evaluate" / "scores.json").write_text(json.dumps({"ssim_rgb": entry}))
    (folder / "evaluate" / "evaluation.json").write_text(json.dumps({"truth": "films", "networks": "made up"}))
    rows = [f"{i},test1,{i},{i},{i // 2},a dog,{value!r}" for i, value in enumerate(ssim.tolist())]
    header = "window,segment,scan,scene,block,caption,ssim_rgb"
    (folder / "evaluate" / "windows.csv").write_text("\n".join([header, *rows]))


def place(folder: Path, number: int) -> Path:
    """The run folder of a seed; the recipe's own is 4."""
    return folder if number == 0 else folder.with_name(f"{folder.name}-seed{4 + number}")


def test_compare_pools_seeds(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    values = {name: rng.random((SEEDS, N)) + shift for name, shift in (("full", 0.0), ("less", -0.5))}
    for name, runs in values.items():
        for number, own in enumerate(runs):
            make_evaluation(place(tmp_path / name, number), own)
    rows = compare_folders([tmp_path / "full", tmp_path / "less"], tmp_path / "out", seeds=SEEDS)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for name, row in zip(values, rows[1:], strict=True):
        means = values[name].mean(axis=1)
        found = content["seeds"][name]["ssim_rgb"]
        assert found["seeds"] == pytest.approx(means.tolist())
        assert found["value"] == pytest.approx(means.mean()) and found["sd"] == pytest.approx(np.std(means, ddof=1))
        assert row[1].startswith(f"{means.mean():.3f} ± {np.std(means, ddof=1):.3f}")
    entry = content["runs"]["less"]["ssim_rgb"]
    assert entry["difference"] == pytest.approx((values["less"] - values["full"]).mean()) and entry["n"] == [N, N]
    assert entry["p"] == pytest.approx(2 / 2**6)  # every block is worse: of 2^6 flips all kept and all flipped
    code, text = cli("compare", tmp_path / "full", tmp_path / "less", "--out", tmp_path / "cli", "--seeds", SEEDS)
    assert code == 0 and "±" in text
    with pytest.raises(DataError, match=r"expected 4 seeds of .*full, found 3 .*give --seeds 3"):
        seed_folders(tmp_path / "full", 4)
    assert "±" not in str(compare_folders([tmp_path / "full", tmp_path / "less"], tmp_path / "one"))


def test_rivals_are_tabled_over_seeds(tmp_path: Path) -> None:
    rng, run = np.random.default_rng(3), tmp_path / "run"
    values = {
        name: rng.random((SEEDS, N)) + shift for name, shift in (("mindvideo", 0.0), ("linear", 0.3), ("gan", 0.0))
    }
    for number in range(SEEDS):
        folder = place(run, number)
        make_evaluation(folder, values["mindvideo"][number], p_holm=0.2 if number == 1 else 0.01)
        for name in ("linear", "gan") if number < 2 else ("linear",):
            make_evaluation(folder / "baselines" / name, values[name][number])
            cost = {"seconds": 10.0 * (number + 1), "peak_memory_bytes": 1e9 + number}
            (folder / "baselines" / name / "done.json").write_text(json.dumps(cost))
    rows = {row["method"]: row for row in collect(run, SEEDS)}
    assert list(rows) == ["mindvideo", "linear"]  # the GAN lacks a seed
    score = rows["linear"]["scores"]["ssim_rgb"]
    means = values["linear"].mean(axis=1)
    assert score["value"] == pytest.approx(means.mean()) and score["sd"] == pytest.approx(np.std(means, ddof=1))
    assert score["shuffled"] == pytest.approx(means.mean() - 0.1) and score["from_brain"] is True
    assert (rows["linear"]["seconds"], rows["linear"]["peak_memory_bytes"]) == (20.0, 1e9 + 2)
    own = rows["mindvideo"]["scores"]["ssim_rgb"]
    assert own["p_holm_shuffled"] == 0.2 and own["from_brain"] is False  # with one seed it was not shown
    difference = compare_methods(run, ["ssim_rgb"], SEEDS)["linear − mindvideo"]["ssim_rgb"]
    assert difference["difference"] == pytest.approx((values["linear"] - values["mindvideo"]).mean())
    assert {row["method"] for row in write_table(run)} == {"mindvideo", "linear", "gan"}
    assert "sd" in (run / "baselines" / "table.csv").read_text().splitlines()[0]
