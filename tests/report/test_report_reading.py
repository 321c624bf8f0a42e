"""What the report reads, says and draws, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mindvideo.errors import DataError
from mindvideo.report.brain import list_brain, split_pictures
from mindvideo.report.build import build_report
from mindvideo.report.plots import Curve, Dot, draw_bars, draw_curves, draw_dots, thin_out
from mindvideo.report.read import Score, read_run
from mindvideo.report.sections import list_curves
from mindvideo.report.sprites import draw_sprite
from mindvideo.report.wording import nice_ticks, write_number, write_p, write_seconds, write_verdict


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        build_report([tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="at least one run"):
        build_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_disagree_are_named(run_dir: Path) -> None:
    path = run_dir
    rows = (path / "evaluate" / "windows.csv").read_text().splitlines()
    (path / "evaluate" / "windows.csv").write_text(
        "\n".join([*rows, rows[1].replace("test1", "test9").replace("test2", "test9")])
    )
    windows = json.loads((path / "reconstruct" / "windows.json").read_text())
    run = read_run(path)
    assert run.window_scores == {} and "does not belong" in run.problems[0]
    (path / "reconstruct" / "windows.json").write_text(json.dumps(windows[:-1]))
    assert any("25 windows, clips.zarr holds 26" in problem for problem in read_run(path).problems)


def test_broken_table_of_windows_is_named(run_dir: Path) -> None:
    path = run_dir / "evaluate" / "windows.csv"
    path.write_text(path.read_text().replace("test1,3,", "test1,three,"))
    run = read_run(run_dir)
    assert run.window_scores == {} and "evaluate/windows.csv" in run.problems[0]


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


def test_verdict_is_as_honest_as_the_numbers(run_dir: Path) -> None:
    run = read_run(run_dir)
    title, text = write_verdict(run)
    assert title == "The reconstructions follow the brain activity." and "4 of 5" in text
    assert "not shown to be better than: mean training frame (P = .62)" in text
    assert "Not shown for: flow end-point error" in text  # lower is better and shuffled is lower

    def with_p(p: float, value: float) -> str:
        score = Score("video_50way", value, None, 9, 0.05, {"shuffled": 0.2}, {"shuffled": p}, {}, True, "")
        run.scores = {"video_50way": score}
        return write_verdict(run)[0]

    assert with_p(0.2, 0.3).startswith("No evidence")
    assert with_p(0.001, 0.1).startswith("No evidence")  # different, but worse
    assert with_p(0.001, 0.3).startswith("The reconstructions follow")
    with_p(0.2, 0.3)
    holm = {"shuffled": 0.002}
    other = Score("image_50way", 0.3, None, 9, 0.05, {"shuffled": 0.1}, {"shuffled": 0.001}, {}, True, "", holm)
    run.scores["image_50way"] = other
    assert "on some scores" in write_verdict(run)[0]
    run.scores.pop("image_50way")
    run.scores["video_50way"].p.clear()
    assert "not known" in write_verdict(run)[0]


def test_numbers_as_written() -> None:
    assert [write_number(v) for v in (None, 0.2136, -0.05, 12.345, 431.2, 1.0, -0.0001)] == [
        "–",
        ".214",
        "−.050",
        "12.3",
        "431",
        "1.000",
        ".000",
    ]
    assert [write_p(p) for p in (None, 0.0002, 0.0123, 0.5)] == ["", "P < .001", "P = .012", "P = .50"]
    assert [write_seconds(s) for s in (7.21, 252, 11100)] == ["7.2 s", "4 min 12 s", "3 h 05 min"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.213, 0.2141), (-3.0, 12.0), (5.0, 5.0), (0.0, 0.0)])
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_plots_place_values_in_proportion() -> None:
    svg = str(draw_dots("t", [Dot("a", 0.0), Dot("b", 0.5, (0.25, 0.75), "main"), Dot("c", 1.0), Dot("<&>", None)]))
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert len(xs) == 3 and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    interval = re.search(r'x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="interval', svg)
    assert interval and float(interval[2]) - float(interval[1]) == pytest.approx(xs[1] - xs[0], abs=0.2)
    widths = [
        float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', str(draw_bars("t", [("a<b", 2.0), ("c", -1.0)])))
    ]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    points = re.search(
        r'points="([^"]+)"', str(draw_curves("t", [Curve("training", [(0, 1.0), (5, 10.0), (10, 100.0)])]))
    )
    assert points
    ys = [float(point.split(",")[1]) for point in points[1].split()]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)  # logarithmic
    assert str(draw_curves("t", [])) == "" and str(draw_dots("t", [])) == "" and str(draw_bars("t", [])) == ""


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
    panels = {panel["name"]: [(key["label"], key["last"]) for key in panel["lines"]] for panel in list_curves(rows)}
    assert panels == {
        "loss": [("training", ".500"), ("validation", ".700"), ("mean predictor", "1.000")],
        "top1": [("validation", ".400"), ("chance", ".100")],
    }


def test_brain_section_says_what_the_files_hold(run_dir: Path) -> None:
    run = read_run(run_dir)
    groups = {group["title"]: group for group in list_brain(run)}
    assert list(groups) == [
        "Against the truth",
        "Attention after cotrain",
        "Occlusion by area",
        "Weight of the lags",
        "Attention after adapt",
        "Attention after align",
    ]
    assert [group["is_folded"] for group in groups.values()] == [False, False, False, True, True, True]
    tokens = str(groups["Occlusion by area"]["panels"][0]["plot"])
    drops = [float(text.replace("−", "-")) for text in re.findall(r'class="value"[^>]*>([^<]+)<', tokens)]
    np.testing.assert_allclose(drops, sorted(((i - 2) / 50 for i in range(31)), reverse=True)[:20])
    attention = str(groups["Attention after cotrain"]["panels"][0]["plot"])
    assert attention.count('class="mark"') == 4 and "limbic A" not in attention  # a network without voxels
    auc = str(groups["Against the truth"]["panels"][0]["plot"])
    assert "occlusion_tokens .930" in auc and "random maps" in auc and auc.count("<circle") == 15
    assert "600 of the 1400" in groups["Against the truth"]["text"]
    shown, earlier = split_pictures(run)
    assert shown == ["inflated_occlusion_tokens.png", "flat_attention_cotrain_last.png"]
    assert earlier == ["flat_attention_adapt_last.png"]


def test_brain_section_of_a_run_without_truth(run_dir: Path) -> None:
    for name in ("truth", "networks", "temporal", "occlusion"):
        (run_dir / "explain" / f"{name}.json").unlink()
    groups = list_brain(read_run(run_dir))
    assert [group["title"] for group in groups] == [f"Attention after {s}" for s in ("cotrain", "adapt", "align")]
    assert all(group["source"] for group in groups)
    note = {"note": "all voxels are truly informative", "auc": {}}
    (run_dir / "explain" / "truth.json").write_text(json.dumps(note))
    first = list_brain(read_run(run_dir))[0]
    assert first["note"] == note["note"] and first["panels"] == []
