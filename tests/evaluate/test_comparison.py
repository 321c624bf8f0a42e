"""Comparisons of runs against direct computation, and calibration of every P-value under the null."""

import importlib.util
import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from mindvideo.errors import DataError
from mindvideo.evaluate.compare import (
    WindowScores,
    compare_all,
    compare_folders,
    compare_runs,
    comparison_rows,
    read_window_scores,
)
from mindvideo.evaluate.score import ScoreResult
from mindvideo.evaluate.statistics import fraction_of_way, holm, two_sample_bootstrap_interval


def load_calibration():
    path = Path(__file__).parents[2] / "docs" / "make_calibration.py"
    spec = importlib.util.spec_from_file_location("make_calibration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def window_scores(name, values, block, truth="films", networks="kit", better=True, needs="images"):
    scores = {
        key: ScoreResult(key, None, definition=f"definition of {key}", needs=needs, higher_is_better=better)
        for key in values
    }
    return WindowScores(name, truth, networks, block, values, scores)


def test_random_training_clips_give_uniform_p_values_where_the_t_test_does_not():
    calibration = load_calibration()
    independent = calibration.false_positive_rates(200, False, seed=11)
    dependent = calibration.false_positive_rates(200, True, seed=12)
    for name in ("block sign flips", "block pairing"):
        assert abs(independent[name] - 0.05) <= 0.03
        assert abs(dependent[name] - 0.05) <= 0.03
    assert abs(independent["t-test over windows"] - 0.05) <= 0.03
    assert dependent["t-test over windows"] > 0.10


def test_p_values_of_random_training_clips_are_uniform_throughout():
    calibration = load_calibration()
    rng = np.random.default_rng(5)
    rows = [calibration.draw_p_values(rng, True, permutations=199) for _ in range(200)]
    for name in ("block sign flips", "block pairing"):
        counts = np.histogram([row[name] for row in rows], bins=5, range=(0, 1))[0]
        assert counts.min() >= 22 and counts.max() <= 60  # 40 expected, standard deviation 5.7


def test_shared_windows_are_compared_in_pairs():
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(6), 4)
    base = rng.normal(size=24)
    first = window_scores("full", {"a": base, "b": base}, block)
    shift = 0.2 + 0.1 * rng.normal(size=24)
    second = window_scores("less", {"a": base + shift, "b": np.where(block == 0, np.nan, base)}, block)
    found = compare_runs(first, second, permutations=100)
    sums = np.array([shift[block == number].sum() for number in range(6)])
    flips = np.array([np.dot(signs, sums) for signs in product([1, -1], repeat=6)])
    p = np.mean(np.abs(flips) >= abs(sums.sum()) - 1e-9)
    entry = found["a"]
    assert entry["design"] == "paired" and entry["p"] == pytest.approx(p) and entry["better"] == "second"
    assert entry["difference"] == pytest.approx(shift.mean())
    assert entry["interval"][0] < shift.mean() < entry["interval"][1]
    assert entry["p_t_test"] == pytest.approx(ttest_ind(base + shift, base).pvalue)
    assert found["b"]["n"] == [20, 20] and found["b"]["p"] == 1.0 and found["b"]["better"] is None
    assert [found[key]["p_holm"] for key in "ab"] == pytest.approx(holm(np.array([p, 1.0])).tolist())


def test_other_windows_are_two_samples_and_classes_are_the_papers():
    rng = np.random.default_rng(1)
    block, more = np.repeat(np.arange(20), 3), np.repeat(np.arange(25), 2)
    first = window_scores("subject 1", {"a": rng.normal(size=60)}, block)
    second = window_scores("subject 2", {"a": rng.normal(size=50) - 4}, more, truth="other films")
    found = compare_runs(first, second)["a"]
    assert found["design"] == "two-sample" and found["n"] == [60, 50]
    assert found["better"] == "first" and found["p_class"] == "p<0.0001" and found["p_holm_class"] == "p<0.0001"
    rows = comparison_rows([first, second], {"subject 2": {"a": found}}, ["a"])
    assert rows[0] == ["run", "a"] and rows[1][0] == "subject 1"
    assert rows[2] == ["subject 2", f"{second.values['a'].mean():.3f} p<0.0001"]


@pytest.mark.parametrize("truth", ["films", "other films"])
def test_the_most_significant_class_can_be_reached_with_several_scores(truth):
    rng = np.random.default_rng(4)
    block = np.arange(30)
    names = "abcdef"
    first = window_scores("x", {name: rng.normal(size=30) for name in names}, block)
    second = window_scores("y", {name: rng.normal(size=30) + 6 for name in names}, block, truth=truth)
    found = compare_runs(first, second)
    for entry in found.values():
        assert entry["smallest_p_holm"] <= entry["p_holm"] < 1e-4 and entry["p_holm_class"] == "p<0.0001"
    few = {name: first.values[name][:5] for name in names}
    more = {name: second.values[name][:5] for name in names}
    found = compare_runs(window_scores("x", few, block[:5]), window_scores("y", more, block[:5], truth=truth))
    # paired: of 2^5 flips all kept and all flipped; two samples of 5: of 252 deals the given one and its opposite
    smallest = 6 * (2 / 2**5 if truth == "films" else 2 / 252)
    assert [entry["smallest_p_holm"] for entry in found.values()] == pytest.approx([smallest] * 6)
    assert found["a"]["p_holm"] == pytest.approx(smallest)


def test_lower_is_better_and_scores_without_a_direction():
    block = np.arange(8)
    values = np.arange(8.0)
    for better, expected in ((False, "first"), (None, None)):
        first = window_scores("x", {"epe": values}, block, better=better)
        second = window_scores("y", {"epe": values + 1}, block, better=better)
        assert compare_runs(first, second)["epe"]["better"] == expected


def test_runs_that_do_not_compare_are_refused():
    block, values = np.arange(8), {"a": np.arange(8.0)}
    first = window_scores("x", values, block)
    with pytest.raises(DataError, match="same networks"):
        compare_runs(first, window_scores("y", values, block, networks="other"))
    pixels = window_scores("y", values, block, networks="none", needs="frames")
    assert compare_runs(window_scores("x", values, block, needs="frames"), pixels)["a"]["difference"] == 0.0
    with pytest.raises(DataError, match="found none for c"):
        compare_runs(first, window_scores("y", values, block), ["c"])
    other = window_scores("y", values, block)
    other.scores["a"] = replace(other.scores["a"], definition="retrieval among another number")
    with pytest.raises(DataError, match="one definition"):
        compare_runs(first, other)


def write_scores(folder, values, truth="films"):
    folder.mkdir(parents=True)
    rows = ["window,segment,scan,scene,block,caption,a,a:shuffled"]
    rows += [f"{i},test1,{i},0,{i // 3},,{value!r},0.0" for i, value in enumerate(values)]
    (folder / "windows.csv").write_text("\n".join(rows) + "\n")
    (folder / "scores.json").write_text(
        json.dumps({"a": {"value": 1.0, "definition": "a score", "higher_is_better": True}})
    )
    (folder / "evaluation.json").write_text(json.dumps({"truth": truth, "networks": "kit"}))
    return folder


def test_folders_are_compared_from_the_command_line(tmp_path, cli):
    rng = np.random.default_rng(3)
    values = rng.normal(size=30)
    full = write_scores(tmp_path / "full" / "evaluate", values.tolist()).parent
    less = write_scores(tmp_path / "less", (values - 1 + 0.1 * rng.normal(size=30)).tolist())
    code, text = cli("compare", full, less, "--out", tmp_path / "table")
    assert re.search(r"│ a +│ +-?\d\.\d{3} │ +-?\d\.\d{3} p<0.01 │", text)  # a score a line
    assert code == 0 and "no corrected P can be below 0.002" in text
    written = json.loads((tmp_path / "table" / "comparison.json").read_text())
    assert written["runs"]["less"]["a"]["p"] == pytest.approx(2 / 2**10)
    assert r"\toprule" in (tmp_path / "table" / "comparison.tex").read_text()
    assert (tmp_path / "table" / "comparison.csv").read_text().startswith("run,a\nfull,")
    (less / "evaluation.json").unlink()
    code, text = cli("compare", full, less, "--out", tmp_path / "table")
    assert code == 1 and "evaluation.json" in text
    with pytest.raises(DataError, match="two or more"):
        compare_folders([full], tmp_path)


def test_fraction_of_the_way_and_its_interval():
    rng = np.random.default_rng(2)
    block = np.repeat(np.arange(30), 4)
    control, ceiling = rng.normal(size=120), rng.normal(size=120) + 3
    values = control + 0.25 * (ceiling - control)
    way, low, high = fraction_of_way(values, control, ceiling, block, 400, rng)
    assert (way, low, high) == pytest.approx((0.25, 0.25, 0.25))
    noisy = values + rng.normal(size=120)
    way, low, high = fraction_of_way(noisy, control, ceiling, block, 400, rng)
    assert way == pytest.approx((noisy - control).mean() / (ceiling - control).mean()) and low < way < high
    assert np.isnan(fraction_of_way(values, ceiling, control, block, 400, rng)).all()


def test_two_sample_interval_is_that_of_independent_means():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=400), rng.normal(2, 2, size=300)
    low, high = two_sample_bootstrap_interval((first, np.arange(400)), (second, np.arange(300)), 2000, rng)
    error = np.sqrt(first.var() / 400 + second.var() / 300)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (low + high) / 2 == pytest.approx(first.mean() - second.mean(), abs=0.05)
    assert np.isnan(two_sample_bootstrap_interval((first, np.zeros(400)), (second, np.arange(300)), 99, rng)).all()


@pytest.mark.parametrize("file", ["scores.json", "evaluation.json", "windows.csv"])
def test_an_evaluation_with_a_lost_or_damaged_file_is_refused(tmp_path, file):
    folder = write_scores(tmp_path / "run", [0.1, 0.2, 0.3, 0.4])
    assert read_window_scores(folder).mean("a") == pytest.approx(0.25)
    (folder / file).write_text("[1, 2")
    with pytest.raises(DataError, match=r"run, found files that are damaged or do not fit .* evaluate' again"):
        read_window_scores(folder)
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"found no {file}; run 'mindvideo evaluate'"):
        read_window_scores(folder)


def test_every_two_methods_are_compared_and_what_cannot_be_is_named(tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.5), ("c", 2.0)):
        write_scores(tmp_path / name, [shift, shift + 0.1, shift + 0.3, shift + 0.4, shift, shift])
    other = json.loads((tmp_path / "c" / "scores.json").read_text())
    other["a"]["definition"] = "another score"
    (tmp_path / "c" / "scores.json").write_text(json.dumps(other))
    found = compare_all({name: [tmp_path / name] for name in ("a", "b", "c", "missing")})
    assert list(found["pairs"]) == ["a"] and list(found["pairs"]["a"]) == ["b"]
    assert found["pairs"]["a"]["b"]["a"]["difference"] == pytest.approx(0.5)
    assert list(found["untested"]) == ["missing", "a and c", "b and c"]
    assert "1 of their scores are of another definition" in found["untested"]["a and c"]
    assert compare_all({name: [tmp_path / name] for name in "ab"}, ["none"])["untested"] == {
        "a and b": "they have no score in common"
    }
