"""The whole evaluation on small clips: values by hand, chance by loops, files, caching, refusals."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy.special import softmax
from skimage.metrics import structural_similarity

from mindvideo.config import Evaluate, parse_recipe
from mindvideo.data.windows import block_numbers
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate import evaluation as stage
from mindvideo.evaluate.aggregate import Design
from mindvideo.evaluate.audit import noise_ceiling
from mindvideo.evaluate.compare import read_window_scores
from mindvideo.evaluate.semantic import n_way_top_k, top_classes
from mindvideo.evaluate.statistics import p_class
from mindvideo.evaluate.tables import brief_rows, detail_rows, latex_table, table_rows
from mindvideo.stages import StageContext

N, F, H, W = 24, 3, 20, 18
SETTINGS = Evaluate.model_validate({"n_ways": [2, 30], "permutations": 499, "bootstraps": 199})
PAIRS = Design(np.arange(N) // 2, SETTINGS, 3)
NO_CAPTIONS = {"captions": "no captioner here"}


class ColourClassifier:
    """Classes and embeddings are random projections of a frame's mean colour and layout."""

    identity = "colour"
    folder = Path("no such foundation")

    def __init__(self):
        rng = np.random.default_rng(8)
        self.to_image, self.to_video = rng.normal(size=(12, 61)), rng.normal(size=(12, 47))
        self.to_embedding = rng.normal(size=(12, 5))
        self.calls = 0

    def _pool(self, frames):
        self.calls += 1
        n, height, width, _ = frames.shape
        cells = frames[:, : height // 2 * 2, : width // 2 * 2].reshape(n, 2, height // 2, 2, width // 2, 3)
        return cells.mean(axis=(2, 4)).reshape(n, 12) / 64 - 2

    def classify_images(self, frames):
        return softmax(self._pool(frames) @ self.to_image, axis=1).astype(np.float32)

    def classify_videos(self, clips):
        return softmax(self._pool(clips.mean(axis=1)) @ self.to_video, axis=1).astype(np.float32)

    def describe_videos(self, clips):
        return self.classify_videos(clips), (self._pool(clips.mean(axis=1)) @ self.to_video).astype(np.float32)

    def encode_image(self, frames):
        return (self._pool(frames) @ self.to_embedding).astype(np.float32)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(9)
    small = rng.integers(0, 256, (N, 1, 5, 6, 3)).astype(float)
    small = small + np.cumsum(rng.normal(0, 12, (N, F, 5, 6, 3)), axis=1)
    truth = np.kron(small, np.ones((1, 1, 4, 3, 1))).clip(0, 255).astype(np.uint8)
    noisy = (0.7 * truth + 0.3 * rng.integers(0, 256, truth.shape)).astype(np.uint8)
    sets = {
        "reconstruction": noisy,
        "shuffled": np.roll(noisy, 7, axis=0),
        "constant": np.broadcast_to(truth.mean(axis=(0, 1)).astype(np.uint8), truth.shape),
        "vae": truth,
    }
    return truth, sets


def score(sets, truth, design=PAIRS, without=NO_CAPTIONS):
    return stage.evaluate_clips(sets, truth, ColourClassifier(), design, without=without)


def plain_ssim(truth, made):
    def of_frame(t, p):
        return structural_similarity(t, p, data_range=255, channel_axis=-1)

    return np.array([np.mean([*map(of_frame, a, b)]) for a, b in zip(truth, made, strict=True)])


@pytest.fixture(scope="module")
def evaluation(clips):
    return score(clips[1], clips[0])


@pytest.fixture
def colours(monkeypatch):
    """The networks of a run's foundation, replaced."""
    classifier = ColourClassifier()
    monkeypatch.setattr(stage, "Foundation", lambda folder, device="cpu": classifier)
    return classifier


def test_every_score_has_its_words_and_numbers(evaluation):
    names = "video_2way video_30way image_2way image_30way ssim_rgb ssim_grey psnr pixel_correlation colour hue_pcc"
    names += " clip_similarity retrieval_top1 retrieval_top5 retrieval_video_top1 retrieval_video_top5 consistency"
    names += " consistency_gated frame_change motion_direction epe epe_farneback"
    assert list(evaluation.scores) == names.split()
    for name, entry in evaluation.scores.items():
        low, high = entry.interval
        assert low <= entry.value <= high, name
        assert entry.definition and set(entry.controls) == {"shuffled", "constant", "vae"}
        assert entry.roles == {"shuffled": "control", "constant": "baseline", "vae": "ceiling"}
        assert set(entry.p) == (set() if name in ("consistency", "frame_change") else {"shuffled", "constant"})
        assert all(entry.p_holm[other] >= p for other, p in entry.p.items())


def test_values_equal_loops_over_windows(evaluation, clips):
    truth, sets = clips
    ssim = plain_ssim(truth, sets["shuffled"])
    np.testing.assert_allclose(evaluation.windows["ssim_rgb"]["shuffled"], ssim, atol=1e-9)
    assert evaluation.scores["ssim_rgb"].controls["shuffled"] == pytest.approx(ssim.mean())
    made, shown = (ColourClassifier().classify_videos(part) for part in (sets["reconstruction"], truth))
    success = n_way_top_k(made, top_classes(shown), 30)
    assert evaluation.scores["video_30way"].value == pytest.approx(success.mean())


def test_chance_is_the_mean_over_all_other_clips(evaluation, clips):
    truth, sets = clips
    classifier = ColourClassifier()
    total = []
    for shift in range(1, N):
        for f in range(F):
            tops = top_classes(classifier.classify_images(np.roll(truth[:, f], shift, axis=0)))
            total.append(n_way_top_k(classifier.classify_images(sets["reconstruction"][:, f]), tops, 30).mean())
    entry = evaluation.scores["image_30way"]
    assert entry.chance == pytest.approx(np.mean(total), abs=1e-6)
    assert entry.chance_closed_form == pytest.approx(3 / 32)
    assert evaluation.scores["retrieval_top5"].chance_closed_form == pytest.approx(5 / N)
    assert evaluation.scores["ssim_rgb"].chance < evaluation.scores["ssim_rgb"].value
    assert evaluation.scores["psnr"].p_chance is None


def test_controls_ceilings_and_directions(evaluation):
    entry = evaluation.scores["image_2way"]
    assert entry.value > entry.controls["shuffled"]
    assert entry.p["shuffled"] < 0.01
    assert entry.p_chance == pytest.approx(1 / 500)
    assert evaluation.scores["ssim_rgb"].controls["vae"] == pytest.approx(1.0)
    epe = evaluation.scores["epe"]
    assert epe.controls["vae"] == 0.0 and epe.higher_is_better is False
    consistency = evaluation.scores["consistency"]
    assert consistency.truth == consistency.controls["vae"]
    assert consistency.controls["constant"] == pytest.approx(1.0)


def test_scene_leaves_only_other_scenes_for_chance(clips):
    truth, _ = clips
    few = {"reconstruction": truth}
    one = score(few, truth, Design(np.arange(N), SETTINGS, scene=np.zeros(N, int)))
    assert one.scores["image_2way"].chance is None
    assert one.scores["ssim_rgb"].chance is None
    scene = np.arange(N) // 12
    two = score(few, truth, Design(np.arange(N), SETTINGS, scene=scene))
    probabilities = ColourClassifier().classify_videos(truth)
    tops = top_classes(probabilities)
    expected = [
        n_way_top_k(probabilities[[i]], tops[[j]], 2)[0] for i in range(N) for j in range(N) if scene[i] != scene[j]
    ]
    assert two.scores["video_2way"].chance == pytest.approx(np.mean(expected), abs=1e-6)


def test_same_seed_same_numbers_and_an_extra_control_changes_none(clips):
    truth, sets = clips
    first = score({name: sets[name] for name in ("reconstruction", "shuffled")}, truth).scores
    second = score(sets, truth).scores
    for name in first:
        for key in ("value", "interval", "chance", "p_chance"):
            assert getattr(first[name], key) == getattr(second[name], key)
        assert first[name].p.get("shuffled") == second[name].p.get("shuffled")


def test_single_frames_leave_out_movement(clips):
    truth, sets = clips
    one = score({"reconstruction": sets["reconstruction"][:, :1]}, truth[:, :1])
    assert "image_30way" in one.scores and "do not move" in one.left_out["video_2way"]
    assert not {"epe", "consistency", "video_2way"} & set(one.scores)


def test_other_clips_than_the_truth_and_more_ways_than_classes_are_refused(clips):
    truth, sets = clips
    for wrong in (truth[:, :2], truth / 255.0):
        with pytest.raises(DataError, match="as 'mean', found"):
            score(sets | {"mean": wrong}, truth)
    design = Design(np.zeros(N, int), Evaluate.model_validate({"n_ways": [80]}))
    with pytest.raises(SettingError, match="80-way"):
        score(sets, truth, design)


def test_table_has_a_row_a_score_and_a_column_a_control(evaluation):
    rows = table_rows(evaluation.scores)
    assert rows[0][5:] == [
        "shuffled (control), P by Holm", "constant (baseline), P by Holm", "vae (ceiling)", "truth", "used by",
    ]  # fmt: skip
    assert {len(row) for row in rows} == {10}
    assert rows[5][0] == "ssim_rgb ↑" and rows[5][7] == "1.000" and "MinD-Video" in rows[5][9]
    by_name = {row[0].split()[0]: row for row in rows}
    assert by_name["consistency"][8] == f"{evaluation.scores['consistency'].truth:.3f}"
    entry = evaluation.scores["image_2way"]
    assert by_name["image_2way"][5].endswith(p_class(entry.p_holm["shuffled"]))
    assert p_class(entry.p_holm["shuffled"]) != p_class(entry.p["shuffled"])  # the correction is seen
    brief = brief_rows(evaluation.scores)
    assert brief[0][4:6] == ["shuffled", "P by Holm"]
    assert [row[5] for row in brief if row[0] == "image_2way ↑"] == [f"{entry.p_holm['shuffled']:.2g}"]


def test_details_hold_every_number_and_latex_has_booktabs_rules(evaluation):
    header, *rows = detail_rows(evaluation.scores)
    found = [dict(zip(header, row, strict=True)) for row in rows]
    row = next(row for row in found if row["score"] == "ssim_rgb" and row["set"] == "shuffled")
    entry = evaluation.scores["ssim_rgb"]
    assert row["value"] == entry.value and row["set_value"] == entry.controls["shuffled"]
    assert row["p"] == entry.p["shuffled"] and row["p_holm"] == entry.p_holm["shuffled"]
    assert row["p_holm_class"] == p_class(entry.p_holm["shuffled"])
    assert (row["set_low"], row["set_high"]) == entry.control_intervals["shuffled"]
    text = latex_table([["a_b", "c"], ["50 %", "p<0.01"]])
    assert text.splitlines()[2:] == [
        r"\toprule", r"a\_b & c \\", r"\midrule", r"50 \% & p$<$0.01 \\", r"\bottomrule", r"\end{tabular}"
    ]  # fmt: skip


def test_captions_and_the_way_to_the_ceiling(clips):
    truth, sets = clips

    class Captioner(ColourClassifier):
        def caption(self, frames):
            return ["a " + " ".join(f"w{int(value) % 5}" for value in frame.mean(axis=(0, 1)) // 8) for frame in frames]

        def encode_text(self, captions):
            return None, np.array([[len(caption) % 3 + 1.0, caption.count("1"), 1.0] for caption in captions])

    named = {"reconstruction": sets["reconstruction"], "shuffled": sets["shuffled"], "caption": truth}
    network = Captioner()
    found = stage.evaluate_clips(named, truth, network, PAIRS).scores
    told = zip(*(network.caption(part[:, F // 2]) for part in (named["shuffled"], truth)), strict=True)
    words = [[Counter(text.split()) for text in pair] for pair in told]
    f1 = [2 * (a & b).total() / (a.total() + b.total()) for a, b in words]
    assert found["caption_f1"].controls["shuffled"] == pytest.approx(np.mean(f1))
    assert found["caption_similarity"].controls["caption"] == pytest.approx(1.0)
    entry = found["psnr"]
    low, high = entry.controls["shuffled"], entry.controls["caption"]
    assert entry.way_to_caption == pytest.approx((entry.value - low) / (high - low))
    assert entry.way_to_caption_interval[0] < entry.way_to_caption < entry.way_to_caption_interval[1]
    assert found["consistency"].way_to_caption is None


def make_run(folder, clips, repeats):
    """A run folder up to reconstruct: the test segment has as many scans as there are clips."""
    truth, sets = clips
    rng = np.random.default_rng(0)
    splits = {"train": ["seg1"], "validation": ["seg2"], "test": ["test1"]}
    about = {"subject": "subject1", "tr_s": 2.0, "lag_s": 4.0, "fps": 3, "size": 18, "splits": splits}
    with StoreWriter(folder / "prepare" / "store.zarr", vertex=np.array([5, 3, 11, 40000]), **about) as writer:
        for number, (name, n) in enumerate({"seg1": 4, "seg2": 3, "test1": N}.items()):
            runs = rng.standard_normal((repeats, n, 4)).astype(np.float32)
            writer.write_fmri(name, runs.mean(axis=0), runs)
            writer.write_frames(name, rng.integers(0, 256, (n, 6, 18, 18, 3), dtype=np.uint8))
            writer.write_scene(name, np.full((n, 6), number))
            writer.write_captions(name, ["a dog"] * n, [["a dog"] * 6] * n)
        writer.finish()
    group = zarr.open_group(folder / "reconstruct" / "clips.zarr", mode="w", attributes={"complete": True})
    for name, values in {"truth": truth, **sets}.items():
        group.create_array(name, data=np.ascontiguousarray(values))
    windows = [
        {"segment": "test1", "scan": i, "scene": i // 3, "block": 0, "caption": 'a "dog", a cat'} for i in range(N)
    ]
    (folder / "reconstruct" / "windows.json").write_text(json.dumps(windows))
    return folder


def test_stage_writes_its_files_and_keeps_features(tmp_path, clips, colours):
    run_dir = make_run(tmp_path, clips, repeats=3)
    recipe = parse_recipe({"evaluate": {"n_ways": [2, 30], "permutations": 199, "bootstraps": 99, "block_s": 6.0}})
    steps = []
    stage.run(StageContext.of(recipe, run_dir, "evaluate", lambda *told: steps.append(told)))
    assert steps[-1][:2] == (2 * N * 5, 2 * N * 5)
    folder = run_dir / "evaluate"
    written = json.loads((folder / "scores.json").read_text())
    assert written["image_2way"]["n"] == N
    rows = list(csv.DictReader((folder / "windows.csv").open()))
    assert len(rows) == N and rows[4]["caption"] == 'a "dog", a cat'
    assert [row["block"] for row in rows[:4]] == ["0", "0", "0", "1"]
    values = [float(row["image_2way"]) for row in rows]
    assert np.mean(values) == pytest.approx(written["image_2way"]["value"])
    controls = [float(row["image_2way:shuffled"]) for row in rows]
    assert np.mean(controls) == pytest.approx(written["image_2way"]["controls"]["shuffled"])
    assert (folder / "scores.tex").read_text().count(r"\\") == len(written) + 1
    assert json.loads((folder / "noise_ceiling.json").read_text())["test1"]["runs"] == 3
    assert json.loads((folder / "near_duplicates.json").read_text())["test_scans"] == N
    about = json.loads((folder / "evaluation.json").read_text())
    assert about["networks"] == "colour" and "another scene" in about["sets"]["shuffled"]["definition"]
    assert "captioner" in about["left_out"]["caption_f1"]
    read = read_window_scores(run_dir)
    assert read.truth == about["truth"] and read.values["image_2way"].tolist() == values
    assert not list(folder.rglob("*.tmp"))
    before = (folder / "scores.json").read_text()
    colours.calls = 0
    stage.run(StageContext.of(recipe, run_dir, "evaluate"))
    assert colours.calls == 0
    assert (folder / "scores.json").read_text() == before
    group = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="r+")
    group["shuffled"][:] = clips[0]
    stage.run(StageContext.of(recipe, run_dir, "evaluate"))
    assert colours.calls > 0
    assert json.loads((folder / "scores.json").read_text())["ssim_rgb"]["controls"]["shuffled"] == pytest.approx(1.0)


def test_stage_says_what_is_missing(tmp_path, clips, colours):
    recipe = parse_recipe({})
    with pytest.raises(DataError, match="run reconstruct first"):
        stage.run(StageContext.of(recipe, tmp_path, "evaluate"))
    run_dir = make_run(tmp_path, clips, repeats=2)
    (run_dir / "reconstruct" / "windows.json").write_text("[]")
    with pytest.raises(DataError, match=f"expected {N} windows"):
        stage.run(StageContext.of(recipe, run_dir, "evaluate"))
    group = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="r+")
    group.attrs["complete"] = False
    with pytest.raises(DataError, match="not finished"):
        stage.run(StageContext.of(recipe, run_dir, "evaluate"))


def test_blocks_stay_inside_segments():
    segment = np.array(["test1"] * 5 + ["test10"] * 4 + ["test2"] * 3)
    scan = np.array([0, 1, 2, 3, 4, 0, 1, 7, 8, 0, 1, 2])
    assert block_numbers(segment, scan, 2).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7]


def test_noise_ceiling_is_the_correlation_of_the_signal_with_the_average():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1, 6000, 3))
    weight = np.array([0.9, 0.5, 0.0])
    repeats = weight * signal + np.sqrt(1 - weight**2) * rng.normal(size=(5, 6000, 3))
    measured = [np.corrcoef(signal[0, :, v], repeats.mean(axis=0)[:, v])[0, 1] for v in range(3)]
    np.testing.assert_allclose(noise_ceiling(repeats)[:2], measured[:2], atol=0.02)
    assert noise_ceiling(repeats)[2] < 0.15


def test_every_score_is_given_film_by_film(clips):
    truth, sets = clips
    film = np.array(["test2"] * 14 + ["test10"] * (N - 14))
    found = stage.evaluate_clips(sets, truth, None, Design(np.arange(N) // 2, SETTINGS, 3, film=film))
    films = found.scores["ssim_rgb"].films
    assert list(films) == ["test2", "test10"] and [entry["n"] for entry in films.values()] == [14, N - 14]
    for name, here in (("test2", slice(0, 14)), ("test10", slice(14, N))):
        for key in ("reconstruction", "shuffled"):
            value = films[name]["value"] if key == "reconstruction" else films[name]["controls"][key]
            assert value == pytest.approx(plain_ssim(truth[here], sets[key][here]).mean())
        low, high = films[name]["interval"]
        assert low < films[name]["value"] < high


def test_without_networks_the_rest_is_scored_and_the_reason_said(clips):
    truth, sets = clips
    found = stage.evaluate_clips(sets, truth, None, PAIRS)
    assert set(found.scores) == {
        "ssim_rgb", "ssim_grey", "psnr", "pixel_correlation", "colour", "hue_pcc", "frame_change", "motion_direction",
        "epe", "epe_farneback",
    }  # fmt: skip
    assert found.networks == "none" and all(entry.network == "" for entry in found.scores.values())
    assert {"image_2way", "video_30way", "clip_similarity", "retrieval_top1", "caption_f1"} <= set(found.left_out)
    assert all("network" in reason for reason in found.left_out.values())


def test_what_cannot_be_had_leaves_out_the_scores_that_need_it(clips, evaluation):
    truth, sets = clips
    found = score(sets, truth, without=NO_CAPTIONS | {stage.OVER_TIME: "the truth stutters"})
    gone = {"frame_change", "motion_direction", "epe", "epe_farneback", "consistency", "consistency_gated"}
    assert {name for name, why in found.left_out.items() if why == "the truth stutters"} == gone
    assert set(found.scores) == set(evaluation.scores) - gone
    assert found.scores["psnr"].value == evaluation.scores["psnr"].value


def test_the_smallest_p_counts_blocks_permutations_and_scores(clips):
    truth, sets = clips
    for n_blocks, single in ((4, 1 / 2**4), (12, 1 / 500)):  # all 16 flips are enumerated, 4,096 are sampled
        found = stage.evaluate_clips(sets, truth, None, Design(np.arange(N) * n_blocks // N, SETTINGS, 3))
        tested = [entry.p_holm["shuffled"] for entry in found.scores.values() if "shuffled" in entry.p_holm]
        assert len(tested) == 9 and found.smallest_p == pytest.approx(9 * single)
        assert min(tested) >= found.smallest_p - 1e-12


def test_a_run_at_another_rate_needs_the_films_for_scores_of_movement(tmp_path, clips, colours):
    slow = np.repeat(clips[0], 4, axis=1)
    run_dir = make_run(tmp_path, (slow, {"reconstruction": slow}), 2)
    recipe = parse_recipe({"evaluate": {"n_ways": [2], "permutations": 99, "bootstraps": 99, "block_s": 6.0}})
    group = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="r+")
    sources = [({"frames_from": "store", "why_not_films": "no film"}, False), ({"frames_from": "films"}, True)]
    for about, kept in sources:
        group.attrs.update(about)
        stage.run(StageContext.of(recipe, run_dir, "evaluate"))
        written = json.loads((run_dir / "evaluate" / "scores.json").read_text())
        left_out = json.loads((run_dir / "evaluate" / "evaluation.json").read_text())["left_out"]
        assert {"ssim_rgb", "video_2way", "clip_similarity"} <= set(written)
        for name in ("frame_change", "motion_direction", "epe", "epe_farneback", "consistency"):
            assert (name in written) == kept and (name in left_out) != kept
            assert kept or left_out[name].endswith("no film")
