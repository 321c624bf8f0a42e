"""The kit's workshop: what it weighs, what it asks of captions, and that a killed training goes on to the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kit import generator, judges, reader, scans, seeing, words
from kit.loop import run
from kit.pool import Pool
from mindvideo.evaluate.judges import Judge, judge_clips, load_judge
from mindvideo.models.foundation import Foundation
from mindvideo.simulate.scenes import COLOURS, THINGS, locate, plan_clip, scene_caption


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(tmp_path_factory.mktemp("pool"), 9)


def test_captions_differ_in_the_swapped_attribute_alone(random_kit: Path) -> None:
    rng = np.random.default_rng(3)
    tokenizer = Foundation(random_kit).tokenizer
    for _ in range(30):
        told = words.tell(rng)
        for name in words.swappable(told):
            other = words.swap(told, name, rng)
            before, after = words.values(told), words.values(other)
            assert [key for key in before if before[key] != after[key]] == [name]
            assert scene_caption(*told) != scene_caption(*other)
            ids = words.encode(tokenizer, [scene_caption(*told)], 52)
            assert tokenizer.decode(ids[0], skip_special_tokens=True).split() == (
                scene_caption(*told).replace(",", " ,").split()
            )


def test_distances_are_squared_over_the_variance() -> None:
    """A tower that gives every caption the number of its words: by hand."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"max_position_embeddings": 52})

        def forward(self, ids: torch.Tensor):
            count = (ids != 1).sum(1).float()
            return type("Output", (), {"last_hidden_state": count[:, None, None].expand(-1, 7, 3)})

    from kit.parts import build_tokenizer

    tokenizer = build_tokenizer()
    found = words.apart(Counting(), tokenizer, count=50, seed=4)  # type: ignore[arg-type]
    rng = np.random.default_rng(4)
    told = [words.tell(rng) for _ in range(50)]
    lengths = np.array([len(scene_caption(*each).replace(",", " ,").split()) for each in told])
    rows = [i for i in range(50) if "thing" in words.swappable(told[i])]
    other = [len(scene_caption(*words.swap(told[i], "thing", rng)).replace(",", " ,").split()) for i in rows]
    expected = 3 * np.mean((np.array(other) - lengths[rows]) ** 2) / (3 * np.repeat(lengths, 7).var(ddof=1))
    assert found["thing"] == pytest.approx(expected, rel=1e-5)
    assert found["colour"] == 0


def test_a_caption_too_long_is_an_error(random_kit: Path) -> None:
    with pytest.raises(ValueError, match="at most 9 tokens, found 12"):
        words.encode(Foundation(random_kit).tokenizer, ["a dog", "a big red car driving quickly left on the sea"], 9)


def test_weights_count_things_and_change_and_have_mean_one() -> None:
    latents, cover = torch.zeros(2, 4, 3, 5, 6), torch.zeros(2, 3, 5, 6)
    cover[0, 1, 2, 3] = 0.5
    latents[1, :, 2, 4, 0] = 1.0  # one cell differs from the frame before
    weight = scans.weigh(latents, cover, thing=2.0, change=1.0)
    plain = np.ones((2, 3, 5, 6))
    plain[0, 1, 2, 3] = 2.0
    plain[1, 1:, 4, 0] = 2.0
    plain /= plain.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(weight[:, 0], plain, rtol=1e-6)


def test_pool_says_what_and_where(small_pool: Pool) -> None:
    for i, clip in enumerate(small_pool.clips):
        np.testing.assert_array_equal(small_pool.frames[i], clip.frames(64))
        assert THINGS[small_pool.labels["thing"][i]] == clip.scene.thing
        for j, t in enumerate(clip.times_s):
            column, row = locate(clip.scene, t)
            names = [("left", "middle", "right"), ("high", "low")]
            assert [None if n < 0 else names[k][n] for k, n in enumerate(small_pool.where[i, j])] == [column, row]
    again = Pool(Path(small_pool.frames.filename).parent, 9)
    np.testing.assert_array_equal(again.cover, small_pool.cover)


def test_a_killed_training_goes_on_to_the_same_weights(small_pool: Pool, tmp_path: Path) -> None:
    def weights(folder: Path, *stops: int) -> torch.Tensor:
        for _ in stops:
            torch.manual_seed(1)
            judge = Judge("image")
            task = judges.JudgeTask(judge, small_pool, 5)
            if _ < stops[-1]:
                task.loss = stop_after(task.loss, _)  # type: ignore[method-assign]
                with pytest.raises(KeyboardInterrupt):
                    run(task, folder, 4, 1e-3, save_every=1)
            else:
                run(task, folder, 4, 1e-3, save_every=1)
        return torch.cat([value.flatten().float() for value in judge.state_dict().values()])

    def stop_after(loss, count):
        calls = iter(range(count))

        def counted(rng):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return loss(rng)

        return counted

    whole, broken = weights(tmp_path / "a", 4), weights(tmp_path / "b", 2, 4)
    assert torch.equal(whole, broken)


def test_judges_are_kept_and_judge(small_pool: Pool, tmp_path: Path) -> None:
    for kind, shape in (("image", (3, 6)), ("video", (3,))):
        judge = Judge(kind).eval()
        judges.save_judge(judge, tmp_path)
        found = judge_clips(load_judge(kind, tmp_path), small_pool.frames[:3])
        assert {values.shape for values in found.values()} == {shape}
        with torch.no_grad():
            clips = torch.from_numpy(small_pool.frames[:3]).float().movedim(-1, -3) / 127.5 - 1
            logits = judge(clips[:, 2:3] if kind == "image" else clips)["thing"]
        expected = logits.argmax(1).numpy()
        np.testing.assert_array_equal(found["thing"][:, 2] if kind == "image" else found["thing"], expected)


def test_contrast_counts_a_near_miss_for_its_own_picture_only() -> None:
    logits = torch.tensor(
        [[2.0, 0.5, 1.0, 9.0], [0.3, 1.5, 8.0, 0.1]]
    )  # two pictures, two captions, one near miss each
    loss, accuracy = seeing.contrast(logits)
    to_text = [-np.log(np.exp(2) / np.exp([2, 0.5, 1.0]).sum()), -np.log(np.exp(1.5) / np.exp([0.3, 1.5, 0.1]).sum())]
    to_image = [-np.log(np.exp(2) / np.exp([2, 0.3]).sum()), -np.log(np.exp(1.5) / np.exp([0.5, 1.5]).sum())]
    assert float(loss) == pytest.approx((np.mean(to_text) + np.mean(to_image)) / 2, rel=1e-5)
    assert accuracy == 1.0


def test_marginals_and_patches_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, 0.3]])  # two things x three motions
    table = np.exp(logits.numpy()).reshape(2, 3)
    expected = -np.log(table[1].sum() / table.sum()) - np.log(table[:, 2].sum() / table.sum())
    assert float(seeing.marginal_losses(logits, torch.tensor([5]), 3)) == pytest.approx(expected, rel=1e-5)
    patches = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]])  # two patches, two things and "nothing"
    cover = torch.tensor([[0.8, 0.0]])
    logs = np.log(np.exp(patches[0].numpy()) / np.exp(patches[0].numpy()).sum(1, keepdims=True))
    losses = [-(0.8 * logs[0, 0] + 0.2 * logs[0, 2]), -logs[1, 2]]
    expected = (0.85 * losses[0] + 0.05 * losses[1]) / 0.9
    assert float(seeing.dense_loss(patches, torch.tensor([0]), cover)) == pytest.approx(expected, rel=1e-5)


def test_swapped_direction_changes_one_word() -> None:
    for number in range(40):
        clip = plan_clip(np.random.default_rng([2, number]))
        if clip.scene.motion in generator.OPPOSITE:
            before, after = clip.caption(), generator.opposite_caption(clip)
            changed = [(a, b) for a, b in zip(before.split(), after.split(), strict=True) if a != b]
            assert changed == [(clip.scene.motion, generator.OPPOSITE[clip.scene.motion])]
    assert len(COLOURS) == 8


def test_what_is_read_of_a_guess_counts_by_hand(tmp_path: Path) -> None:
    """Nothing is lost where guess and truth agree but what the reader cannot read; clips of two scenes have no labels."""
    torch.manual_seed(6)
    reader.save_reader(reader.LatentReader(), tmp_path)
    reads = reader.load_reader(tmp_path)
    clips = [plan_clip(np.random.default_rng([8, i]), with_cut=i == 2) for i in range(3)]
    labels = reader.labels_of(clips)
    assert {name: int(label[2]) for name, label in labels.items()} == dict.fromkeys(reader.READS, -1)
    assert [THINGS[label] for label in labels["thing"][:2]] == [clip.scene.thing for clip in clips[:2]]
    latents, weight = torch.randn(3, 4, 6, 16, 16), torch.tensor([0.2, 1.0, 0.7])
    far, told = reader.read_loss(reads, latents, latents, labels, weight)
    logits = {name: values.numpy() for name, values in reads(latents)[0].items()}
    expected = 0.0
    for i in (0, 1):
        for name in ("thing", "motion"):
            row = logits[name][i]
            expected += float(weight[i]) * (np.log(np.exp(row).sum()) - row[labels[name][i]]) / 3
    assert float(far) == 0.0
    assert float(told) == pytest.approx(expected, rel=1e-5)
    farther, _ = reader.read_loss(reads, latents + 0.1 * torch.randn_like(latents), latents, labels, weight)
    assert float(farther) > 0
