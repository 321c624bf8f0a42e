"""CLIP's text tower that goes on with films: its losses against plain loops, and what it learns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mindvideo.foundation import kit
from mindvideo.foundation.clip_text import SHARPNESS, ClipTextTask, moving_miss, see_clips
from mindvideo.foundation.pool import Pool
from mindvideo.foundation.tasks import contrast, near_miss, tokenize
from mindvideo.simulate.scenes import plan_clip
from mindvideo.train.loop import Optimise

SIZE, CLIPS = kit.TEST.size, 7


@pytest.fixture(scope="module")
def pool() -> Pool:
    clips = [plan_clip(np.random.default_rng([4, number]), 6, 3.0) for number in range(CLIPS)]
    cover = np.zeros((CLIPS, 6, 16, 16), np.uint8)
    return Pool(np.stack([clip.frames(SIZE) for clip in clips]), [clip.scene for clip in clips], cover)


def test_contrast_against_a_loop() -> None:
    count, misses = 3, 2
    logits = torch.randn(count, count * (1 + misses), generator=torch.Generator().manual_seed(2))
    total, right = 0.0, 0
    for row in range(count):
        seen = [*logits[row, :count], *(logits[row, count + misses * row + number] for number in range(misses))]
        total -= float(torch.stack(seen).log_softmax(0)[row]) / 2
        total -= float(logits[:, row].log_softmax(0)[row]) / 2
        right += int(torch.stack(seen).argmax()) == row
    loss, accuracy = contrast(logits)
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert accuracy == pytest.approx(right / count)


def test_contrast_without_near_misses_is_clips() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    own = torch.arange(5)
    expected = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrast(logits)[0], expected)


def test_a_moving_miss_changes_what_a_film_shows_and_nothing_else() -> None:
    scene = plan_clip(np.random.default_rng(1), 1).scene
    rng, changed = np.random.default_rng(0), set()
    for _ in range(40):
        other = moving_miss(scene, rng)
        differing = [name for name, value in vars(scene).items() if vars(other)[name] != value]
        assert len(differing) == 1
        changed |= set(differing)
    assert changed == {"motion", "speed", "camera"}


def test_what_is_seen_of_clips(pool: Pool) -> None:
    torch.manual_seed(0)
    image, video = kit.build_image_encoder(kit.TEST).eval(), kit.build_video_classifier(kit.TEST).eval()
    stills, films = see_clips(image, video, pool, None, clips=5)
    assert stills.shape == (5, 2, image.config.projection_dim) and films.shape == (5, video.config.hidden_size)
    pixels = torch.from_numpy(pool.frames[3]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        alone = image(pixels[4:5]).image_embeds[0]
        torch.testing.assert_close(stills[3, 1], alone / alone.norm(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(video.classifier(films[3]), video(pixels[None]).logits[0], atol=1e-5, rtol=1e-4)


def test_the_loss_by_hand(pool: Pool) -> None:
    torch.manual_seed(0)
    tokenizer = kit.build_tokenizer()
    tokenizer.model_max_length = kit.TEST.length
    text = kit.build_text_encoder(kit.TEST, tokenizer)
    old = copy.deepcopy(text)

    def before(captions: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return old(tokenize(tokenizer, captions)).last_hidden_state

    generator = torch.Generator().manual_seed(5)
    stills = torch.nn.functional.normalize(
        torch.randn(CLIPS, 2, text.config.projection_dim, generator=generator), dim=-1
    )
    films = torch.randn(CLIPS, 9, generator=generator)
    settings = Optimise(steps=1, batch_size=3)
    task = ClipTextTask(text, before, tokenizer, (stills, films), pool, settings)
    loss, figures = task.loss(0, 0, np.random.default_rng(8))
    assert figures["kept"] == pytest.approx(0.0, abs=1e-10)
    assert float(loss) == pytest.approx(figures["films"] + figures["stills"], rel=1e-5)

    rng = np.random.default_rng(8)
    index = rng.integers(CLIPS, size=3)
    own = [pool.scenes[i].caption(rng) for i in index]
    visible = [near_miss(pool.scenes[i], rng).caption(rng) for i in index]
    moving = [moving_miss(pool.scenes[i], rng).caption(rng) for i in index]

    def last(caption: str) -> torch.Tensor:
        numbers = tokenize(tokenizer, [caption])
        tokens = text(numbers).last_hidden_state[0]
        return torch.stack([token for token, number in zip(tokens, numbers[0], strict=True)
                            if number == tokenizer.eos_token_id]).mean(0)  # fmt: skip

    guess = task.guess((films[index] - films.mean(0)) / films.std(0))
    logits = torch.stack([
        torch.stack([-SHARPNESS * (guess[row] - last(caption)).square().mean()
                     for caption in [*own, *(c for pair in zip(visible, moving, strict=True) for c in pair)]])
        for row in range(3)
    ])  # fmt: skip
    assert figures["films"] == pytest.approx(float(contrast(logits)[0]), rel=1e-4)


def test_training_brings_motion_into_the_tokens() -> None:
    torch.manual_seed(0)
    tokenizer = kit.build_tokenizer()
    tokenizer.model_max_length = kit.TEST.length
    text = kit.build_text_encoder(kit.TEST, tokenizer)
    scenes = [plan_clip(np.random.default_rng([6, number]), 1).scene for number in range(60)]
    pool = Pool(np.zeros((60, 1, 4, 4, 3), np.uint8), scenes, np.zeros((60, 1, 16, 16), np.uint8))
    films = torch.nn.functional.one_hot(torch.from_numpy(pool.labels["motion"]), 6).float()
    stills = torch.nn.functional.normalize(torch.ones(60, 2, text.config.projection_dim), dim=-1)

    def before(captions: list[str]) -> torch.Tensor:
        return first[: len(captions)]

    def between(one: str, other: str) -> float:
        with torch.no_grad():
            tokens = text(
                tokenize(tokenizer, [f"a red dog running {one} on a beach", f"a red dog running {other} on a beach"])
            )
        return float((tokens.last_hidden_state[0, -1] - tokens.last_hidden_state[1, -1]).square().mean())

    with torch.no_grad():
        first = text(tokenize(tokenizer, ["a small red dog"] * 20)).last_hidden_state
    task = ClipTextTask(text, before, tokenizer, (stills, films), pool, Optimise(steps=1, batch_size=20))
    untrained = between("left", "up")
    optimiser = torch.optim.Adam(list(task.parameters().values()), lr=3e-3)
    rng = np.random.default_rng(1)
    for step in range(80):
        optimiser.zero_grad()
        loss, _ = task.loss(step, 0, rng)
        loss.backward()
        optimiser.step()
    assert between("left", "up") > 3 * untrained
