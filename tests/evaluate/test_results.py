"""Anyone's clips: reading, seams, pairing, alignment, and the command on folders of GIFs, films and arrays."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from kit.parts import IMAGE_CLASSES
from mindvideo.data.video import write_video
from mindvideo.errors import DataError
from mindvideo.evaluate.external import deal_to_other_blocks
from mindvideo.evaluate.results import Clips, align_clips, pair_clips, read_clips, read_gif, split_side_by_side
from mindvideo.evaluate.seam import find_layout

N, F, H, W = 12, 3, 40, 48


@pytest.fixture(scope="module")
def halves():
    """Smooth clips (N, F, H, W, 3) twice, whose edges do not meet."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, N, F, 5, 6, 3)).astype(float)
    ramp = np.kron(small, np.ones((1, 1, 1, 8, 8, 1)))
    return (ramp + np.linspace(0, 20, W)[None, None, None, None, :, None]).clip(0, 255).astype(np.uint8)


def side_by_side(truth, reconstruction, pad=0, gap=0, colour=0):
    film = np.concatenate([truth, np.full((*truth.shape[:2], gap, 3), colour, np.uint8), reconstruction], axis=2)
    return np.pad(film, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=colour)


def write_gif(path, frames, durations=333):
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


@pytest.mark.parametrize(("pad", "gap", "colour"), [(0, 0, 0), (2, 2, 0), (0, 5, 255), (3, 0, 255)])
def test_halves_are_found_with_and_without_padding(halves, pad, gap, colour):
    films = [side_by_side(t, r, pad, gap, colour) for t, r in zip(*halves, strict=True)]
    layout = find_layout(films)
    truth, reconstruction = layout.split(films[3])
    np.testing.assert_array_equal(truth, halves[0][3])
    np.testing.assert_array_equal(reconstruction, halves[1][3])
    assert ("rows above" in layout.note) == (pad > 0) and (f"{gap} columns between" in layout.note) == (gap > 0)


def test_a_seam_beside_the_middle_is_found_and_said():
    ramp = np.linspace(0, 60, 100) + 2 * np.arange(40)[None, :, None]
    wide = np.broadcast_to(np.concatenate([ramp[..., :70], 250 - ramp[..., :54]], axis=-1), (4, 40, 124))
    films = [np.repeat((wide + shift)[..., None], 3, axis=-1).astype(np.uint8) for shift in range(3)]
    layout = find_layout(films)
    assert layout.truth == (0, 70) and layout.reconstruction == (70, 124) and "not in the middle" in layout.note


def test_without_a_seam_even_films_are_halved_and_odd_ones_refused():
    ramp = np.linspace(0, 200, 130)[None, None, :, None] * np.linspace(0.3, 1, 40)[None, :, None, None]
    film = np.broadcast_to(ramp, (3, 40, 130, 3)).astype(np.uint8)
    layout = find_layout([film[:, :, :128]])
    assert layout.truth[1] == layout.reconstruction[0] == 64 and "no seam is seen" in layout.note
    with pytest.raises(DataError, match="129 columns"):
        find_layout([film[:, :, :129]])
    with pytest.raises(DataError, match="one height and width"):
        find_layout([film, film[:, :-2]])


def test_merged_gif_frames_come_back(tmp_path, halves):
    frames = halves[0][0][[0, 0, 1, 2, 2, 2]]
    write_gif(tmp_path / "a.gif", frames[[0, 2, 3]], durations=[200, 100, 300])
    found = read_gif(tmp_path / "a.gif")
    assert len(found) == 6
    assert np.abs(found.astype(int) - frames).mean() < 6
    assert (found[0] == found[1]).all() and (found[3] == found[5]).all()
    (tmp_path / "b.gif").write_bytes(b"GIF89a nothing")
    with pytest.raises(DataError, match=r"b\.gif"):
        read_gif(tmp_path / "b.gif")


def test_every_kind_of_folder_reads_alike_in_natural_order(tmp_path, halves):
    clips = halves[0][:11]
    for kind in ("sequences", "arrays", "films", "pictures"):
        (tmp_path / kind).mkdir()
    for i, clip in enumerate(clips):
        write_video(tmp_path / "films" / f"c{i}.mp4", clip, 3, (H, W))
        np.save(tmp_path / "arrays" / f"c{i}.npy", clip)
        (tmp_path / "sequences" / f"c{i}").mkdir()
        for f, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / "sequences" / f"c{i}" / f"{f}.png")
        Image.fromarray(clip[1]).save(tmp_path / "pictures" / f"c{i}.png")
    np.save(tmp_path / "all.npy", np.moveaxis(clips, -1, -3) / np.float32(255))
    names = [f"c{i}" for i in range(11)]
    for kind in ("sequences", "arrays", "films"):
        found = read_clips(tmp_path / kind)
        assert found.names == names
        error = np.abs(np.stack(found.clips).astype(int) - clips).mean()
        assert error == 0 if kind != "films" else error < 8
    np.testing.assert_array_equal(np.stack(read_clips(tmp_path / "pictures").clips)[:, 0], clips[:, 1])
    whole = read_clips(tmp_path / "all.npy")
    np.testing.assert_array_equal(np.stack(whole.clips), clips)
    assert whole.notes == ["arrays have channels before height and width", "arrays of floats in 0…1 were scaled by 255"]
    (tmp_path / "arrays" / "x.gif").write_bytes(b"")
    with pytest.raises(DataError, match="one kind"):
        read_clips(tmp_path / "arrays")
    np.save(tmp_path / "wrong.npy", clips * 2.0)
    with pytest.raises(DataError, match="floats outside"):
        read_clips(tmp_path / "wrong.npy")
    (tmp_path / "longer.npy").write_bytes((tmp_path / "all.npy").read_bytes() + b"1")
    with pytest.raises(DataError, match=r"bytes in .*longer\.npy, as its header says"):
        read_clips(tmp_path / "longer.npy")


def test_pairs_by_name_then_by_number_and_names_what_is_missing():
    def clip_set(*names):
        return Clips(list(names), [np.full((1, 1, 1, 3), i, np.uint8) for i in range(len(names))])

    _, truth = pair_clips(clip_set("a", "b"), clip_set("b", "a"))
    assert truth.names == ["a", "b"] and truth.clips[0].max() == 1
    _, truth = pair_clips(clip_set("test2", "test10"), clip_set("gt_010", "gt_002"))
    assert truth.names == ["gt_002", "gt_010"]
    with pytest.raises(
        DataError, match=r"found 2 and 3; without a true clip: test4; without a reconstruction: gt2, gt3"
    ):
        pair_clips(clip_set("test1", "test4"), clip_set("gt1", "gt2", "gt3"))


def test_frames_and_sizes_are_brought_together_and_said(halves):
    truth = Clips(["a", "b"], [halves[0][0][[0, 0, 1, 1, 2, 2]], halves[0][1][[0, 0, 1, 1, 2, 2]]])
    clips = Clips(["a", "b"], [np.kron(halves[1][i], np.ones((1, 2, 2, 1), np.uint8)) for i in (0, 1)])
    ours, theirs, notes = align_clips(clips, truth)
    np.testing.assert_array_equal(theirs, halves[0][:2])
    np.testing.assert_array_equal(ours, halves[1][:2])
    assert notes == [
        f"reconstruction: frames of {2 * H} x {2 * W} brought to {H} x {W}",
        "truth: 2 of 2 clips brought to 3 frames (a, b)",
    ]
    with pytest.raises(DataError, match="--fit crop"):
        align_clips(clips, truth, size=32)
    assert align_clips(clips, truth, size=32, fit="crop")[0].shape == (2, F, 32, 32, 3)


def test_dealing_leaves_no_window_in_its_block():
    block = np.repeat([3, 0, 7, 5], [4, 2, 3, 4])
    for seed in range(20):
        order = deal_to_other_blocks(block, np.random.default_rng(seed))
        assert sorted(order.tolist()) == list(range(13)) and (block[order] != block).all()
    assert deal_to_other_blocks(np.zeros(5, int), np.random.default_rng(0)) is None


FEW = ("--set", "evaluate.n_ways=[2,30]", "--set", "evaluate.permutations=99", "--set", "evaluate.bootstraps=99")


def test_published_gifs_from_the_command_line(tmp_path, halves, random_kit, cli):
    folder = tmp_path / "gifs"
    folder.mkdir()
    for i in range(N):
        write_gif(folder / f"test{i + 1}.gif", side_by_side(halves[0][i], halves[1][i], 2, 2))
    code, text = cli("evaluate", folder, "--block", 2, "--foundation", random_kit, *FEW)
    assert code == 0, text
    names = f"ViTForImageClassification of {len(IMAGE_CLASSES)} classes, part image_classifier of kit: image_2way, image_30way"
    assert names in " ".join(text.split())
    assert "2 columns between the halves" in text and "mean_truth_frame" in text and "grey" in text
    out = tmp_path / "gifs_scores"
    scores = json.loads((out / "scores.json").read_text())
    split = split_side_by_side(read_clips(folder))
    expected = [
        np.mean([structural_similarity(a, b, data_range=255, channel_axis=-1) for a, b in zip(t, r, strict=True)])
        for t, r in zip(split[0].clips, split[1].clips, strict=True)
    ]
    rows = list(csv.DictReader((out / "windows.csv").open()))
    assert [row["segment"] for row in rows] == [f"test{i + 1}" for i in range(N)]
    np.testing.assert_allclose([float(row["ssim_rgb"]) for row in rows], expected, atol=1e-9)
    assert set(scores["ssim_rgb"]["controls"]) == {"shuffled_pairing", "mean_truth_frame", "grey"}
    assert {"retrieval_video_top1", "caption_f1", "image_30way"} <= set(scores)
    assert (out / "scores.csv").is_file() and r"\toprule" in (out / "scores.tex").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "evaluation.json", "scores.csv", "scores.json", "scores.tex", "windows.csv",
    ]  # fmt: skip
    assert len(list(folder.iterdir())) == N


def test_networks_judge_only_what_they_are_given_for(tmp_path, halves, random_kit, cli):
    mine, truth, judges = tmp_path / "mine", tmp_path / "truth", tmp_path / "judges"
    for place, half in ((mine, halves[1]), (truth, halves[0])):
        place.mkdir()
        for i in range(N):
            np.save(place / f"clip{i}.npy", half[i])
    code, text = cli("evaluate", mine, "--reference", truth, "--block", 2, *FEW)
    assert code == 0, text
    content = json.loads((tmp_path / "mine_scores" / "scores.json").read_text())
    assert set(content) & {"image_2way", "video_2way", "clip_similarity", "caption_f1"} == set()
    assert {"ssim_rgb", "epe"} <= set(content) and all(entry["network"] == "" for entry in content.values())
    about = json.loads((tmp_path / "mine_scores" / "evaluation.json").read_text())
    assert about["networks"] == "none" and "--foundation FOLDER" in about["left_out"]["image_2way"]
    assert "left out: video_2way, video_30way, image_2way" in text and "--foundation FOLDER" in text
    shutil.copytree(random_kit / "video_classifier", judges / "video_classifier")
    code, text = cli("evaluate", mine, "--reference", truth, "--block", 2, "--foundation", judges, *FEW)
    assert code == 0, text
    content = json.loads((tmp_path / "mine_scores" / "scores.json").read_text())
    assert content["video_2way"]["network"].startswith("VideoMAEForVideoClassification of ")
    assert "part video_classifier of judges" in content["video_2way"]["network"] and "image_2way" not in content
    assert "the foundation judges has no part 'image_classifier'" in " ".join(text.split())
    config = judges / "video_classifier" / "config.json"
    kinetics = {str(i): f"action {i}" for i in range(400)}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": kinetics}))
    many = ("--out", tmp_path / "many", "--set", "evaluate.n_ways=[2,400]")
    code, text = cli("evaluate", mine, "--reference", truth, "--foundation", judges, *many)
    assert code == 1 and "evaluate.n_ways of at most 398, as video_classifier has 400 classes" in " ".join(text.split())
    assert not (tmp_path / "many").exists()
    code, text = cli("evaluate", mine, "--reference", truth, "--foundation", tmp_path / "gone", *FEW)
    assert code == 1 and "gone" in text and "Traceback" not in text


def test_the_shipped_kit_says_what_it_does_not_know(tmp_path, halves, cli):
    np.save(tmp_path / "mine.npy", halves[1][:4])
    np.save(tmp_path / "truth.npy", halves[0][:4])
    code, text = cli("evaluate", tmp_path / "mine.npy", "--reference", tmp_path / "truth.npy", "--foundation", "embedded",
                     "--block", 1, *FEW)  # fmt: skip
    assert code == 0 and "drawn scenes only" in text
    content = json.loads((tmp_path / "mine_scores" / "scores.json").read_text())
    assert "part image_classifier of the shipped kit" in content["image_2way"]["network"]


def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path, halves, cli):
    folder, truth = tmp_path / "mine", tmp_path / "truth"
    for place, count in ((folder, 3), (truth, 4)):
        place.mkdir()
        for i in range(count):
            np.save(place / f"clip{i}.npy", halves[0][i])
    for arguments, words in (
        ((folder,), "--reference"),
        ((folder, "--reference", truth), "without a reconstruction: clip3"),
        ((folder, "--reference", tmp_path / "none"), "folder of clips"),
        ((folder, "--reference", truth, "--out", truth), "other files"),
        ((folder, "--reference", truth, "--fit", "squash"), "crop or stretch"),
    ):
        code, text = cli("evaluate", *arguments)
        assert code == 1 and words in text and "Traceback" not in text
    assert not (tmp_path / "mine_scores").exists()
