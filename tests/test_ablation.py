"""The ablation: what differs between variants, what they share, going on after a kill, and the numbers of the table."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mindvideo import study
from mindvideo.ablation import Ablation, choose_variants, list_variants
from mindvideo.ablation.rows import RowRuns, latex_rows, write_table
from mindvideo.ablation.variants import Variant, change_recipe
from mindvideo.config import Recipe, load_recipe, save_recipe
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.compare import WindowScores, pool_seeds
from mindvideo.evaluate.score import ScoreResult
from mindvideo.evaluate.statistics import holm
from mindvideo.evaluate.tables import latex_table
from mindvideo.files import link_folder
from mindvideo.report.ablation import ablation_section

Cli = Callable[..., tuple[int, str]]
CHOSEN = ("window_2", "no_guidance", "no_cotrain")


def _ablation(recipe: Recipe, folder: Path, reuse: Path, only: tuple[str, ...] = CHOSEN) -> Ablation:
    variants = list_variants(recipe)
    return Ablation(recipe, folder, choose_variants(variants, only), reuse=[reuse], others=variants)


@pytest.fixture(scope="module")
def ablated(
    tiny_recipe: Recipe, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[str]], list[str]]:
    """Folder of a finished ablation, the stages that ran by run, and what it said. The full method is ``tiny_run``."""
    folder, said = tmp_path_factory.mktemp("ablation"), []
    ran = _ablation(tiny_recipe, folder, tiny_run).run(say=said.append)
    return folder, ran, said


def test_stages_that_do_not_change_are_shared(ablated: tuple[Path, dict[str, list[str]], list[str]]) -> None:
    folder, ran, said = ablated
    assert ran == {
        "full": [],
        "no_guidance": ["reconstruct", "evaluate"],
        "no_cotrain": ["cotrain", "reconstruct", "evaluate"],
    }
    assert not (folder / "window_2").exists()
    assert "window_2: the same settings as full, one row for both" in said
    assert any(line.startswith("[2/3] no_guidance: shares simulate, ") and "left in all: 5" in line for line in said)
    store = "prepare/store.zarr/zarr.json"
    assert (folder / "full" / store).samefile(folder / "no_cotrain" / store)
    assert not (folder / "full/align/metrics.jsonl").samefile(folder / "no_cotrain/align/metrics.jsonl")
    assert json.loads((folder / "full" / "shared.json").read_text())["align"] == "tiny"
    assert json.loads((folder / "no_cotrain" / "shared.json").read_text())["align"] == "full"


def test_every_variant_runs(tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path) -> None:
    """To the scores, with few windows and steps; none may stop at what the others never try."""
    recipe = change_recipe(tiny_recipe, {"reconstruct.max_windows": 8, "cotrain.steps": 1})
    variants = list_variants(recipe)
    ablation = Ablation(recipe, tmp_path, variants, reuse=[tiny_run])
    ran = ablation.run(say=lambda line: None)
    own = [run for run in ablation.runs if run.same_as is None]
    assert {run.name for run in own} == {variant.name for variant in variants} - {"window_2", "subject_1"}
    for run in own:
        scores = json.loads((run.study.run_dir / "evaluate" / "scores.json").read_text())
        assert run.is_done and 0 <= scores["video_2way"]["value"] <= 1 and scores["video_2way"]["n"] == 8
        assert "reconstruct" in ran[run.name] and "prepare" not in ran[run.name]
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [run.name for run in own]


def test_removing_a_variant_leaves_the_others_whole(
    ablated: tuple[Path, dict[str, list[str]], list[str]], tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    link_folder(ablated[0], folder)
    shutil.rmtree(folder / "full")
    plan = _ablation(tiny_recipe, folder, tiny_run).plan()
    assert {step.what for step in plan["no_cotrain"]} == {"there"}
    assert {step.what for step in plan["full"]} == {"shared"}
    assert json.loads((folder / "no_cotrain" / "align" / "done.json").read_text())["stage"] == "align"


def test_settings_of_a_variant_reach_its_recipe(
    ablated: tuple[Path, dict[str, list[str]], list[str]], tiny_recipe: Recipe
) -> None:
    recipes = {name: yaml.safe_load((ablated[0] / name / "recipe.yaml").read_text()) for name in
               ("full", "no_guidance", "no_cotrain")}  # fmt: skip
    assert [recipe["reconstruct"]["negative"] for recipe in recipes.values()] == ["train_mean", "none", "train_mean"]
    assert [recipe["cotrain"]["enabled"] for recipe in recipes.values()] == [True, True, False]
    controls = [recipe["reconstruct"]["controls"] for recipe in recipes.values()]
    assert controls == [list(tiny_recipe.reconstruct.controls), [], []]


def test_a_second_call_runs_nothing_and_a_lost_stage_is_run_again(
    ablated: tuple[Path, dict[str, list[str]], list[str]],
    tiny_recipe: Recipe,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "copy"
    link_folder(ablated[0], folder)
    assert _ablation(tiny_recipe, folder, tiny_run).run(say=lambda line: None) == {}
    before = json.loads((folder / "ablation.json").read_text())
    (folder / "no_guidance" / "evaluate" / "done.json").unlink()  # as after a kill
    plan = _ablation(tiny_recipe, folder, tiny_run).plan()
    assert [step.stage for step in plan["no_guidance"] if step.what == "run"] == ["evaluate"]
    called: list[str] = []

    def fail(self: study.Study, stage: Any, *_: Any) -> None:
        called.append(stage.name)
        raise DataError("stopped")

    monkeypatch.setattr(study.Study, "_run_stage", fail)
    with pytest.raises(DataError, match="stopped"):
        _ablation(tiny_recipe, folder, tiny_run).run(say=lambda line: None)
    assert called == ["evaluate"]
    assert json.loads((folder / "ablation.json").read_text()) == before


def test_numbers_of_the_table_are_the_runs_scores(ablated: tuple[Path, dict[str, list[str]], list[str]]) -> None:
    folder = ablated[0]
    content = json.loads((folder / "ablation.json").read_text())
    columns = [column["score"] for column in content["columns"]]
    assert columns[:5] == ["video_2way", "video_50way", "image_2way", "image_50way", "ssim_rgb"]
    assert [row["name"] for row in content["rows"]] == ["full", "no_guidance", "no_cotrain"]
    assert [variant["name"] for variant in content["rows"][0]["also"]] == ["window_2", "subject_1"]
    for row in content["rows"]:
        scores = json.loads((folder / next(iter(row["runs"].values())) / "evaluate" / "scores.json").read_text())
        for name in columns:
            assert row["scores"][name]["value"] == pytest.approx(scores[name]["value"], rel=1e-12)
            assert row["scores"][name]["interval"] == scores[name]["interval"]
            assert row["scores"][name]["n"] == scores[name]["n"]
    full = json.loads((folder / "full" / "evaluate" / "scores.json").read_text())
    assert {reference["name"] for reference in content["references"]} == set(full["ssim_rgb"]["controls"])
    for reference in content["references"]:
        assert reference["scores"]["ssim_rgb"]["value"] == full["ssim_rgb"]["controls"][reference["name"]]
    for name in columns:
        cells = [row["scores"][name] for row in content["rows"][1:]]
        np.testing.assert_allclose([c["p_holm"] for c in cells], holm(np.array([c["p"] for c in cells])))
    lines = list(csv.DictReader((folder / "ablation.csv").open()))
    assert len(lines) == (3 + len(content["references"])) * len(columns)
    assert {line["value"] for line in lines if line["row"] == "no_cotrain" and line["score"] == "ssim_rgb"} == {
        str(content["rows"][2]["scores"]["ssim_rgb"]["value"])
    }
    films = {entry["film"]: entry for entry in content["films"] if entry["name"] == "full"}
    weighted = sum(entry["value"] * entry["n"] for entry in films.values()) / sum(e["n"] for e in films.values())
    assert weighted == pytest.approx(full["ssim_rgb"]["value"])


def test_latex_has_the_shape_of_the_paper(ablated: tuple[Path, dict[str, list[str]], list[str]]) -> None:
    content = json.loads((ablated[0] / "ablation.json").read_text())
    lines = (ablated[0] / "ablation.tex").read_text().splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 1 + len(content["rows"]) + len(content["references"])
    n_columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", "\n".join(lines))[1])  # type: ignore[index]
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == n_columns - 1 == len(content["columns"])
        assert line.count("{") == line.count("}")
        assert not re.search(r"(?<!\\)[_%#]", line)
    assert lines[-1] == r"\end{tabular}"
    content["rows"][1]["scores"]["ssim_rgb"]["p_class"] = "p<0.0001"
    rows, classes = latex_rows(content)
    assert r"\cellcolor[HTML]{D9C8F2}" in latex_table(rows, classes)


def test_fragment_of_the_report(ablated: tuple[Path, dict[str, list[str]], list[str]], tmp_path: Path) -> None:
    page = ablation_section(ablated[0])
    assert "window of 2 scans" in page and "without guidance" in page and "shuffled brain" in page
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org)|url\(|<script", page)
    for tag in ("table", "tr", "td", "figure", "div", "small", "b", "ul"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>")
    with pytest.raises(DataError, match="mindvideo ablate"):
        ablation_section(tmp_path)


def test_command_shows_the_plan_and_names_the_nearest_variant(
    cli: Cli, tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    save_recipe(tiny_recipe, recipe)
    out = tmp_path / "out"
    code, text = cli("ablate", recipe, "--out", out, "--reuse", tiny_run, "--only", "text_only,window_2", "--plan")
    assert code == 0
    assert "window_2 (align.window=2): same as full" in text
    assert "adapt, animate with tiny; runs align, cotrain" in text
    assert "runs align, cotrain, reconstruct, evaluate" in text
    assert not out.exists()
    code, text = cli("ablate", recipe, "--out", out, "--only", "no_alignment")
    assert code == 1 and "'no_align'" in text
    code, text = cli("ablate", recipe, "--out", out, "--subjects", "2")
    assert code == 1 and "--seeds" in text
    code, text = cli("ablate", recipe, "--out", out, "--subjects", "two")
    assert code == 1 and "1,2,3" in text


def test_every_variant_of_the_demo_changes_its_recipe() -> None:
    recipe = load_recipe("demo")
    for variant in list_variants(recipe)[1:]:
        changed = change_recipe(recipe, variant.changes)
        assert (changed == recipe) == (variant.name in ("window_2", "subject_1")), variant.name


def test_variants_of_the_papers_recipe_that_mean_the_same_share_a_row(random_kit: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    recipe = load_recipe("wen2018", [f"foundation={random_kit}", f"data.raw={tmp_path / 'raw'}"])
    runs = {run.name: run.same_as for run in Ablation(recipe, tmp_path / "out", list_variants(recipe)).runs}
    same = {name: other for name, other in runs.items() if other is not None}
    assert same == {
        "window_2": "full", "no_token_regression": "full", "paper_encoder": "full",
        "paper_loss": "full", "paper_encoder_loss": "full", "no_align": "no_contrastive", "subject_1": "full",
    }  # fmt: skip


def test_subjects_are_found_and_missing_ones_named(tmp_path: Path) -> None:
    for name in ("subject1", "subject3", "stimuli"):
        (tmp_path / name).mkdir()
    recipe = load_recipe("wen2018", [f"data.raw={tmp_path}"])
    assert [v.name for v in list_variants(recipe) if v.name.startswith("subject")] == ["subject_1", "subject_3"]
    assert [v.name for v in list_variants(recipe, [3]) if v.name.startswith("subject")] == ["subject_3"]
    with pytest.raises(DataError, match=r"subject 2 .* found those of 1, 3"):
        list_variants(recipe, [1, 2])
    with pytest.raises(SettingError, match="window_1"):
        choose_variants(list_variants(recipe), ["windw_1"])


def test_simulated_subjects_are_counted_and_others_refused() -> None:
    recipe = load_recipe("demo", ["simulate.subjects=3"])
    assert [v.name for v in list_variants(recipe) if v.name.startswith("subject")] == [
        f"subject_{n}" for n in (1, 2, 3)
    ]
    assert [v.name for v in list_variants(recipe, [2]) if v.name.startswith("subject")] == ["subject_2"]
    with pytest.raises(SettingError, match=r"found 5, 4 in --subjects; give --set simulate.subjects=5"):
        list_variants(recipe, [2, 5, 4])


def test_an_encoder_from_scratch_shares_the_row_without_masked_modelling(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = change_recipe(tiny_recipe, {"align.start_from": "scratch"})
    runs = Ablation(recipe, tmp_path, list_variants(recipe)).runs
    same = {run.name for run in runs if run.same_as == "full"}
    assert same == {"window_2", "no_pretrain", "no_adapt", "no_masked_modelling", "subject_1"}


def _made_up(folder: Path, ssim: np.ndarray, truth: str) -> Path:
    """A run folder with the evaluation of 2 films x 3 blocks x 2 windows."""
    (folder / "evaluate").mkdir(parents=True)
    entry = {
        "value": float(ssim.mean()), "interval": [0.0, 1.0], "n": len(ssim), "definition": "similarity",
        "chance": None, "higher_is_better": True, "controls": {}, "control_intervals": {}, "roles": {},
        "is_main": True,
    }  # fmt: skip
    (folder / "evaluate" / "scores.json").write_text(json.dumps({"ssim_rgb": entry}))
    (folder / "evaluate" / "evaluation.json").write_text(json.dumps({"truth": truth, "networks": "made up"}))
    (folder / "evaluate" / "done.json").write_text(json.dumps({"seconds": 7.0, "hash": str(folder)}))
    rows = [f"{i},test{i // 6 + 1},{i % 6},{i},{i // 2},a dog,{value!r}" for i, value in enumerate(ssim.tolist())]
    (folder / "evaluate" / "windows.csv").write_text(
        "\n".join(["window,segment,scan,scene,block,caption,ssim_rgb", *rows])
    )
    return folder


@pytest.mark.parametrize("truths", [("a", "a", "a"), ("a", "b", "c")], ids=["same films", "other films"])
def test_several_seeds(tmp_path: Path, truths: tuple[str, str, str]) -> None:
    rng = np.random.default_rng(5)
    base = rng.random((3, 12))
    better = base + np.array([0.1, 0.2, 0.3])[:, None] + 0.01 * rng.random((3, 12))
    groups = [
        RowRuns(Variant(name, name, {}), (), {seed: _made_up(tmp_path / f"{name}{seed}", values[seed], truths[seed])
                                              for seed in range(3)})
        for name, values in (("full", base), ("other", better))
    ]  # fmt: skip
    content = write_table(load_recipe("demo"), tmp_path, groups)
    cell = content["rows"][1]["scores"]["ssim_rgb"]
    assert cell["seeds"] == pytest.approx(better.mean(axis=1).tolist())
    assert cell["value"] == pytest.approx(better.mean())
    assert cell["sd"] == pytest.approx(np.std(better.mean(axis=1), ddof=1))
    assert cell["difference"] == pytest.approx((better - base).mean())
    n_blocks, n = (6, 12) if truths[0] == truths[1] else (18, 36)
    assert cell["n"] == n
    # Every block is better: of all sign flips only all kept and all flipped are as extreme.
    smallest = 2 / 2**n_blocks
    is_exact = 2**n_blocks <= content["permutations"]
    assert cell["p"] == pytest.approx(smallest) if is_exact else cell["p"] < 5 / content["permutations"]
    assert content["smallest_p"] == pytest.approx(smallest if is_exact else 1 / (content["permutations"] + 1))
    assert content["rows"][1]["seconds"] == 21.0


def test_pooling_keeps_blocks_of_other_films_apart() -> None:
    def scores(truth: str, values: list[float], block: list[int]) -> WindowScores:
        return WindowScores("full", truth, "n", np.array(block), {"s": np.array(values)}, {"s": ScoreResult("s", None)})

    same = pool_seeds([scores("a", [1.0, 2.0, 4.0], [0, 0, 1]), scores("a", [3.0, 2.0, 8.0], [0, 0, 1])])
    np.testing.assert_array_equal(same.values["s"], [2.0, 2.0, 6.0])
    np.testing.assert_array_equal(same.block, [0, 0, 1])
    other = pool_seeds([scores("a", [1.0, 2.0, 4.0], [0, 0, 1]), scores("b", [5.0, 6.0], [4, 7])])
    np.testing.assert_array_equal(other.values["s"], [1.0, 2.0, 4.0, 5.0, 6.0])
    np.testing.assert_array_equal(other.block, [0, 0, 1, 2, 5])
    assert other.truth != same.truth
