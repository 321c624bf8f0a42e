"""What the report reads, says and draws, without a browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from markupsafe import Markup
from trace_walk import rank_windows

from mindvideo.clip_sets import clip_set
from mindvideo.errors import DataError
from mindvideo.evaluate.score import ScoreResult
from mindvideo.report.brain import list_brain, list_surfaces, split_pictures, warn_of_maps
from mindvideo.report.build import build_report, find_ablations
from mindvideo.report.comparison import list_rivals, measure_differences, tabulate
from mindvideo.report.dataset import describe_validation, list_choices, summarise_data
from mindvideo.report.gallery import describe_gallery, find_ends, mean_ranks
from mindvideo.report.methods_text import list_machine, write_bibliography, write_citation, write_methods
from mindvideo.report.page import Assets
from mindvideo.report.plots import WAY_TICKS, Curve, Dot, draw_curves, draw_dots, find_ticks, thin_out
from mindvideo.report.read import read_run
from mindvideo.report.sections import list_curves
from mindvideo.report.sprites import draw_sprite
from mindvideo.report.verdict import list_aspects, write_verdict
from mindvideo.report.wording import write


def change(path: Path, **values: Any) -> None:
    """Other values of a JSON or YAML file's keys."""
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    path.write_text(write(read(path.read_text()) | values))


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        build_report([tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="at least one run"):
        build_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["test1,three,", "test9,3,"])
def test_a_table_of_other_windows_is_named(run_dir: Path, place: str) -> None:
    path = run_dir / "evaluate" / "windows.csv"
    path.write_text(path.read_text().replace("test1,3,", place))
    run = read_run(run_dir)
    assert run.window_scores == {} and "evaluate/windows.csv does not belong" in run.problems[0]


@pytest.mark.parametrize("frames", [3, 5])
def test_a_clip_lasts_as_long_as_its_scan(run_dir: Path, tmp_path: Path, frames: int) -> None:
    """Of 2 s, whatever ``reconstruct.num_frames`` is; the recipe's 3 frames a second where no store tells."""
    group = zarr.open_group(run_dir / "reconstruct" / "clips.zarr")
    clips = {name: group[name][:, :frames] for name in ("truth", "reconstruction")}
    run = replace(read_run(run_dir), clips=clips)
    assert describe_gallery(run, "a", Assets(tmp_path), None)["fps"] == frames / 2
    shutil.rmtree(run_dir / "prepare" / "store.zarr")
    assert describe_gallery(run, "a", Assets(tmp_path), None)["fps"] == 3


def test_lists_of_windows_that_disagree_are_named(run_dir: Path) -> None:
    path = run_dir / "reconstruct" / "windows.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    assert any("25 windows, clips.zarr holds 26" in problem for problem in read_run(run_dir).problems)


def test_window_scores_follow_segment_and_scan(made: tuple[Path, dict[str, np.ndarray]]) -> None:
    run = read_run(made[0].parent.parent)
    for name, value in made[1].items():
        np.testing.assert_allclose(np.array(run.window_scores[name]["reconstruction"], float), value)
        np.testing.assert_allclose(np.array(run.window_scores[name]["shuffled"], float), value / 2)
    assert run.scores["consistency"].controls == {"shuffled": None}
    assert run.problems == []


def test_sprite_puts_every_frame_in_its_place() -> None:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (3, 5, 7, 11, 3), dtype=np.uint8)
    sheet = np.asarray(draw_sprite(clips))
    assert sheet.shape == (21, 55, 3)
    for kind in range(3):
        for frame in range(5):
            np.testing.assert_array_equal(
                sheet[7 * kind : 7 * kind + 7, 11 * frame : 11 * frame + 11], clips[kind, frame]
            )
    large = np.zeros((2, 4, 256, 192, 3), np.uint8)
    large[1, 2] = 255
    small = np.asarray(draw_sprite(large))
    assert small.shape == (256, 384, 3)
    assert small[128:, 192:288].min() == 255 and small.sum() == 255 * 128 * 96 * 3


def make_score(name: str, family: str, holm: float | None, value: float = 0.3, constant: float = 0.1) -> ScoreResult:
    return ScoreResult(
        name, value, label=name.replace("_", " "), family=family, n=9, controls={"shuffled": 0.2, "constant": constant},
        roles={"shuffled": "control", "constant": "baseline"}, p={"shuffled": 0.001},
        p_holm={} if holm is None else {"shuffled": holm}, higher_is_better=True,
    )  # fmt: skip


def test_verdict_is_as_honest_as_the_numbers(run_dir: Path) -> None:
    run = read_run(run_dir)
    title, text = write_verdict(run)
    assert title == (
        "Content came from the simulated brain, layout (better still: mean training frame) in part; for motion there is "
        "no evidence."
    )
    text = text.striptags()
    assert "4 of 5 scores are better than with the brain activity of another moment at P < .05 after Holm" in text
    assert "by SSIM RGB the mean training frame, which needs no brain, is better still" in text
    assert "no corrected P can be below 7.6 × 10⁻⁴." in text
    aspects = list_aspects(run)
    states = {aspect.name: (aspect.state, len(aspect.beaten), len(aspect.tested)) for aspect in aspects}
    assert states == {"layout": ("part", 1, 1), "content": ("yes", 3, 3), "motion": ("no", 0, 1)}
    assert sum(len(aspect.tested) for aspect in aspects) + 1 == len(run.scores)  # tiles, sentence and table agree

    def title_of(*scores: ScoreResult) -> str:
        run.scores = {score.name: score for score in scores}
        return write_verdict(run)[0]

    none = "No evidence that content came from the simulated brain."
    assert title_of(make_score("video_50way", "content", 0.2)) == none
    assert title_of(make_score("video_50way", "content", 0.001, value=0.1)) == none  # different, but worse
    assert title_of(make_score("video_50way", "content", 0.001)) == "Content came from the simulated brain."
    both = (make_score("video_50way", "content", 0.2), make_score("retrieval_top1", "content", 0.001))
    assert title_of(*both) == "Content came from the simulated brain in part."
    rest = (
        make_score("psnr", "layout", 0.001), make_score("colour", "colour", 0.001),
        make_score("attribute_motion", "motion", 0.5),
    )  # fmt: skip
    assert title_of(*both, *rest) == (
        "Layout and colour came from the simulated brain, content in part; for motion there is no evidence."
    )
    assert title_of(make_score("psnr", "layout", 0.001, constant=0.4)) == (
        "Layout (better still: mean training frame) came from the simulated brain in part."
    )
    assert "not known" in title_of(make_score("video_50way", "content", None))
    run.scores, run.smallest_p = {"a": make_score("a", "content", 0.06)}, 0.06
    assert "nothing can be shown" in write_verdict(run)[1]


def test_choices_are_flagged(run_dir: Path) -> None:
    choices = {choice["name"]: choice for choice in list_choices(read_run(run_dir))}
    assert choices["Guidance"]["kind"] == "inductive" and not choices["Guidance"]["is_warning"]
    assert choices["Near-duplicates"]["text"].striptags().startswith("1 of 11 test scans")
    change(run_dir / "recipe.yaml", reconstruct={"negative": "test_mean", "max_windows": 40})
    (run_dir / "evaluate" / "near_duplicates.json").unlink()
    choices = {choice["name"]: choice for choice in list_choices(read_run(run_dir))}
    assert choices["Guidance"]["kind"] == "transductive" and choices["Guidance"]["is_warning"]
    assert "Only 40" in choices["Test windows"]["text"] and "not audited" in choices["Near-duplicates"]["text"]
    assert choices["Left out"]["text"] == "caption_f1, epe_farneback: no captioner."


@pytest.mark.parametrize(
    ("data", "words", "is_warning"),
    [
        ({"selection": "paper"}, "Rule “paper”", False),
        ({"selection": "all", "areas": "V1,V2"}, "All voxels of the areas V1,V2.", False),
        ({"selection": "paper", "source": "published"}, "by the publishers", True),
    ],
)
def test_choice_of_voxels_is_the_one_that_took_place(
    run_dir: Path, data: dict[str, str], words: str, is_warning: bool
) -> None:
    change(run_dir / "recipe.yaml", data=data)
    (choice,) = (choice for choice in list_choices(read_run(run_dir)) if choice["name"] == "Voxels")
    assert words in choice["text"] and choice["is_warning"] == is_warning


def test_direction_of_a_score_is_read_and_never_guessed(run_dir: Path) -> None:
    path = run_dir / "evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    scores["wrong_error"] = scores.pop("epe") | {"higher_is_better": True}
    del scores["ssim_rgb"]["higher_is_better"]
    path.write_text(json.dumps(scores))
    found = read_run(run_dir).scores
    assert found["wrong_error"].higher_is_better is True and found["ssim_rgb"].higher_is_better is None


def test_methods_of_other_networks_are_shown_but_not_compared(run_dir: Path) -> None:
    about = run_dir / "baselines" / "ridge" / "evaluate" / "evaluation.json"
    about.write_text(json.dumps({"truth": "films", "networks": "others"}))
    entrants = list_rivals(read_run(run_dir))
    found = measure_differences(entrants)
    assert set(found["pairs"]["this study"]["ridge"]) == {"ssim_rgb", "epe"}  # what needs no network
    assert "3 of their scores are of another definition or were measured by other networks" in str(found["untested"])
    table = tabulate(entrants, found, "differences.json")
    assert table and table["labels"] == ["this study", "ridge"]
    shown = {row.name: "<br>" in row.cells[1].small for row in table["rows"]}  # a second line below the interval
    assert shown == {name: name in ("SSIM RGB", "flow end-point error") for name in shown} and len(shown) == 6


def test_scores_of_one_name_but_another_label_do_not_share_a_row(run_dir: Path) -> None:
    path = run_dir / "baselines" / "ridge" / "evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    scores["image_50way"]["label"] = "image 50-way, top-1 of 120"
    path.write_text(json.dumps(scores))
    entrants = list_rivals(read_run(run_dir))
    table = tabulate(entrants, measure_differences(entrants), "differences.json")
    assert table and {"image 50-way", "image 50-way, top-1 of 120"} <= set(table["alone"])
    assert not [row for row in table["rows"] if row.name.startswith("image 50-way")]


def test_maps_no_better_than_untrained_networks_say_so(run_dir: Path) -> None:
    auc = {"attention_cotrain_last": 0.59, "occlusion_tokens": 0.93, "attention_adapt_last": 0.61}
    untrained = {"attention_last": [0.41, 0.6, 0.52], "occlusion_tokens": [0.5, 0.4, 0.7], "attention_first": [0.2]}
    change(
        run_dir / "explain" / "truth.json",
        auc=auc | {"attention_first": 0.48},
        auc_untrained=untrained,
        rank_correlation={"attention_cotrain_last": 0.123, "occlusion_tokens": 0.3},
        rank_correlation_untrained={"attention_last": [0.104, 0.14, 0.1], "occlusion_tokens": [None, 0.4]},
    )
    run = read_run(run_dir)
    judged = {name: text.striptags() for name, text in warn_of_maps(run).items()}
    assert judged == {
        "attention_cotrain_last": "No better than chance or untrained networks in finding the voxels that carry signal: area "
        "under the ROC curve .590, an untrained network’s .600; rank correlation with the true reliability .123, an untrained "
        "network’s .140.",
        "occlusion_tokens": "No better than chance or untrained networks in finding the voxels that carry signal: rank "
        "correlation with the true reliability .300, an untrained network’s .400.",
        "attention_first": "No better than chance or untrained networks in finding the voxels that carry signal: area under "
        "the ROC curve .480, by chance 0.5.",
    }
    (turning,) = list_surfaces(run, run_dir / "report", warn_of_maps(run))
    assert turning["address"] == "../explain/surface_occlusion_tokens.html" and turning["warning"]
    page = build_report([run_dir], run_dir / "report").read_text()
    assert page.count("No better than chance or untrained networks") == 3  # two pictures shown and the surface


def test_without_held_out_films_the_page_says_how_choices_were_made(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert "held out of training" in describe_validation(run)
    run.recipe["data"]["validation_segments"] = 0
    text = describe_validation(run)
    assert "no validation figures" in text and "blocked cross-validation" in text


def test_the_mean_control_is_labelled_by_what_it_is(run_dir: Path) -> None:
    about = run_dir / "evaluate" / "evaluation.json"
    content = json.loads(about.read_text())
    content["sets"]["mean"] = asdict(clip_set("mean", "test_mean"))
    about.write_text(json.dumps(content))
    page = build_report([run_dir], run_dir / "report").read_text()
    assert "the mean test fMRI" in page and "the mean training fMRI" not in page
    assert re.search(r"mean brain <small>never guided</small>", page) and "is never guided: P against it" in page


def test_the_papers_limitations_are_on_the_page(run_dir: Path) -> None:
    limits = {choice["name"]: choice["text"] for choice in list_choices(read_run(run_dir)) if choice["kind"] == "limit"}
    assert "within one person" in limits["People"]
    assert "1400 of the 59 412 positions" in " ".join(Markup(limits["Cortex"]).striptags().split())


def test_ablation_beside_the_run_is_found(run_dir: Path) -> None:
    assert find_ablations([run_dir]) == []
    (run_dir.parent / "ablation.json").write_text("{}")
    assert find_ablations([run_dir]) == [run_dir.resolve().parent]
    assert find_ablations([run_dir.parent, run_dir]) == [run_dir.parent]


def test_best_median_and_worst_are_by_the_mean_of_ranks(made: tuple[Path, dict[str, np.ndarray]]) -> None:
    run_dir, values = made[0].parent.parent, made[1]
    ranks = mean_ranks(read_run(run_dir))
    np.testing.assert_allclose(np.array(ranks, float), rank_windows(run_dir))
    assert min(v for v in ranks if v is not None) > 0 and len(values) == 5
    ends = find_ends([0.5, None, 0.9, 0.1, 0.6])
    assert ends == [2, 4, 3] and find_ends([]) == [] and find_ends([0.2]) == [0, 0, 0]
    run = read_run(run_dir)
    run.window_scores = {"epe": {"reconstruction": [2.0, 1.0, None, 3.0]}, "consistency": {"reconstruction": [1.0] * 4}}
    assert mean_ranks(run) == [0.5, 1.0, None, 0.0]  # an error: lowest is best; what has no direction is left out


def test_methods_and_citation_are_of_this_run(run_dir: Path) -> None:
    evaluate = {"block_s": 20.0, "permutations": 5000, "bootstraps": 2000}
    change(run_dir / "recipe.yaml", evaluate=evaluate, pretrain={"steps": 150, "batch_size": 48, "lr": 0.001})
    run = read_run(run_dir)
    text = write_methods(run, summarise_data(run))
    for words in (
        "Simulated brain activity of subject1 (a volume every 2 s) to 2 training, 1 validation and 1 test films",
        "frames shown 4 s earlier. 1400 cortical voxels", "trained in one stage: pretrain",
        "150 steps of 48, learning rate 0.001", "26 test windows were scored by 6 measures and compared with shuffled brain",
        "blocks of 20 s, 5000 permutations", "MinD-Video 0.1.0+abc (commit 0123abc) and PyTorch 2.99.1 in bf16 on A <fast>",
    ):  # fmt: skip
        assert words in text, words
    assert "true caption" not in text  # a ceiling is nothing to compare with
    facts, note = list_machine(run)
    assert dict(facts)["memory"] == "64.0 GB" and "recorded by the stages" in note
    assert "0.1.0+abc" in write_citation(run)
    bib = write_bibliography(run)
    assert re.findall(r"@\w+\{(\w+),", bib) == ["mindvideo", "chen2023video"] and "Version 0.1.0+abc" in bib
    del run.recipe["simulate"]
    run.recipe["data"]["source"] = "wen2018"
    assert bib.count("{") == bib.count("}") and "@article{wen2018," in write_bibliography(run)


@pytest.mark.parametrize(
    ("form", "numbers", "written"),
    [
        ("percent", (None, 0.572, -1.31, 0.0), "–|57 %|−131 %|0 %"),
        ("number", (None, 0.2136, -0.05, 12.345, 431.2, 1.0, -0.0001), "–|.214|−.050|12.3|431|1.000|.000"),
        ("p", (None, 0.0002, 0.0123, 0.5), "|P < .001|P = .012|P = .50"),
        ("short", (None, 2.416, -0.000131, 0.0, 5e-5), "–|2.4|−1.3 × 10⁻⁴|0|5.0 × 10⁻⁵"),
        ("signed", (0.1, -0.1, 0.0, None), "+.100|−.100|.000|–"),
        ("seconds", (7.21, 252, 11100), "7.2 s|4 min 12 s|3 h 05 min"),
    ],
)
def test_numbers_as_written(form: str, numbers: tuple[float | None, ...], written: str) -> None:
    assert [write(number, form) for number in numbers] == written.split("|")


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.213, 0.2141), (-3.0, 12.0), (5.0, 5.0), (0.0, 0.0), (1e-13, 1e-13), (0.2, 0.2 + 1e-16)],
)
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = find_ticks([low, high])
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_plots_place_values_in_proportion() -> None:
    svg = str(draw_dots("t", [Dot("a", 0.0), Dot("b", 0.5, (0.25, 0.75), "main"), Dot("c", 1.0), Dot("<&>", None)]))
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert len(xs) == 3 and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    interval = re.search(r'x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="interval', svg)
    assert interval and float(interval[2]) - float(interval[1]) == pytest.approx(xs[1] - xs[0], abs=0.2)
    marks = str(draw_dots("t", [Dot("a", 0.5, mark=0.25), Dot("b", -1.0)], chance=0.0))
    zero, mark = (re.search(rf'x1="([\d.]+)"[^>]*class="{name}"', marks) for name in ("chance", "mark"))
    first, second = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', marks))
    assert zero and mark
    assert first - float(zero[1]) == pytest.approx(2 * (float(mark[1]) - float(zero[1])), abs=0.2)
    assert float(zero[1]) - second == pytest.approx(2 * (first - float(zero[1])), abs=0.2)
    points = re.search(
        r'points="([^"]+)"', str(draw_curves("t", [Curve("training", [(0, 1.0), (5, 10.0), (10, 100.0)])]))
    )
    assert points
    ys = [float(point.split(",")[1]) for point in points[1].split()]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)  # logarithmic
    assert str(draw_curves("t", [])) == "" and str(draw_dots("t", [])) == ""


def test_way_has_one_axis_and_points_to_what_lies_outside() -> None:
    svg = str(draw_dots("t", [Dot("a", 0.0), Dot("b", 1.0), Dot("c", 1.9), Dot("d", -3.0)], axis=WAY_TICKS))
    shuffled, caption = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg))
    ticks = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="tick"', svg)]
    assert ticks == pytest.approx([shuffled, (shuffled + caption) / 2, caption], abs=0.1)
    tips = [float(x) for x in re.findall(r'<polygon points="([\d.]+),', svg)]
    assert tips[0] > caption and tips[1] < shuffled
    assert svg.count("textLength") == 0 and "textLength" in str(draw_dots("t", [Dot("x" * 60, 0.5)]))


def test_long_logs_are_thinned_to_their_means() -> None:
    points = [(float(i), float(i % 4)) for i in range(1000)]
    thin = thin_out(points, 250)
    assert len(thin) == 250 and all(y == 1.5 for _, y in thin)
    assert thin_out(points[:7], 250) == points[:7]


def test_curves_of_one_figure_share_a_panel() -> None:
    rows = [
        {"step": 0.0, "loss": 1.0, "lr": 0.1},
        {"step": 9.0, "loss": 0.5, "validation_loss": 0.7, "mean_predictor_loss": 1.0},
    ]
    rows.append({"step": 10.0, "validation_top1": 0.4, "validation_top1_chance": 0.1})
    panels = {
        panel["name"]: [(key["label"], key["last"].striptags()) for key in panel["lines"]]
        for panel in list_curves(rows, "align/metrics.jsonl")
    }
    assert panels == {
        "loss": [("training", ".500"), ("validation", ".700"), ("mean predictor", "1.000")],
        "top1": [("validation", ".400"), ("chance", ".100")],
    }


def test_brain_section_says_what_the_files_hold(run_dir: Path) -> None:
    run = read_run(run_dir)
    groups = {group["title"]: group for group in list_brain(run)}
    titles = "Against the truth; Attention after cotrain; Occlusion by area; Weight of the lags; Attention after adapt"
    assert list(groups) == [*titles.split("; "), "Attention after align"]
    tokens = str(groups["Occlusion by area"]["panels"][0]["plot"])
    drops = [float(text.replace("−", "-")) for text in re.findall(r'class="value main"[^>]*>([^<]+)<', tokens)]
    np.testing.assert_allclose(drops, sorted(((i - 2) / 50 for i in range(31)), reverse=True)[:20])
    attention = str(groups["Attention after cotrain"]["panels"][0]["plot"])
    assert attention.count('class="mark"') == 4 and "limbic A" not in attention  # a network without voxels
    auc = str(groups["Against the truth"]["panels"][0]["plot"])
    assert "occlusion tokens .930" in auc and "random maps" in auc and auc.count("<circle") == 13
    assert "600 of the 1400" in groups["Against the truth"]["text"].striptags()
    shown, earlier = split_pictures(run)
    assert shown == ["flat_attention_cotrain_last.png"]
    assert earlier == ["flat_attention_adapt_last.png", "inflated_occlusion_tokens.png"]


def test_brain_section_of_a_run_without_truth(run_dir: Path) -> None:
    for name in ("truth", "networks", "temporal", "occlusion"):
        (run_dir / "explain" / f"{name}.json").unlink()
    assert "no map is compared" in " ".join(build_report([run_dir], run_dir / "report").read_text().split())
    groups = list_brain(read_run(run_dir))
    assert [group["title"] for group in groups] == [f"Attention after {s}" for s in ("cotrain", "adapt", "align")]
    assert all(group["source"] for group in groups)
    note = {"note": "all voxels are truly informative", "auc": {}}
    (run_dir / "explain" / "truth.json").write_text(json.dumps(note))
    first = list_brain(read_run(run_dir))[0]
    assert first["note"] == note["note"] and first["panels"] == []
