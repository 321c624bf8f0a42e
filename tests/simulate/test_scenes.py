"""The picture-book world: what a caption says is what is drawn, and held-out combinations stay out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mindvideo.simulate.figures import COLOUR_VALUES
from mindvideo.simulate.scenes import (
    CAMERAS,
    COLOURS,
    MOTIONS,
    PLACES,
    THINGS,
    Scene,
    draw_clip,
    draw_scene,
    is_held_out,
    make_film,
    render_film,
    render_scene,
    scene_at,
)

PLAIN = Scene("car", "red", "big", "sea", "left", "fast", "static", "day", None, seed=4)


def test_the_world_is_large_enough() -> None:
    assert len(THINGS) >= 12
    assert len(COLOURS) >= 8
    assert len(PLACES) >= 8
    assert {"left", "right", "up", "down", "still", "turning"} == set(MOTIONS)
    assert {"zoom in", "zoom out", "pan left", "pan right"} <= set(CAMERAS)


def test_held_out_combinations_are_never_drawn_for_training() -> None:
    rng = np.random.default_rng(3)
    for held_out in (False, True):
        for _ in range(200):
            scene = draw_scene(rng, held_out)
            assert is_held_out(scene.thing, scene.place, scene.motion) == held_out
    share = np.mean([is_held_out(t, p, m) for t in THINGS for p in PLACES for m in MOTIONS])
    assert 0.1 < share < 0.2
    for thing in THINGS:
        assert not all(is_held_out(thing, p, m) for p in PLACES for m in MOTIONS)


def test_caption_says_what_is_there() -> None:
    assert PLAIN.caption() == "a big red car driving quickly left on the sea"
    other = replace(PLAIN, thing="dog", motion="still", other=("ball", "blue"), light="sunset", camera="zoom in")
    assert other.caption() == "a big red dog and a blue ball standing still on the sea at sunset, zooming in"


def _figure(scene: Scene, times: np.ndarray) -> np.ndarray:
    """Where a frame differs from the same scene without its figure's colour: (T, 2) centres as (y, x)."""
    other = replace(scene, colour="green")
    changed = np.abs(render_scene(scene, times).astype(int) - render_scene(other, times)).sum(-1) > 60
    return np.array([np.argwhere(mask).mean(axis=0) for mask in changed])


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_things_move_where_the_caption_says(motion: str, axis: int, sign: int) -> None:
    centres = _figure(replace(PLAIN, motion=motion, size="small"), np.array([1.2, 2.8]))
    moved = (centres[1] - centres[0])[axis] * sign
    assert moved == pytest.approx(0.2 * 1.6 * 64, abs=2.5)


def test_colour_is_the_named_one() -> None:
    for name in ("red", "blue", "yellow", "purple"):
        frame = render_scene(replace(PLAIN, thing="ball", colour=name), np.array([2.0]))[0]
        near = np.abs(frame.astype(int) - np.array(COLOUR_VALUES[name])).sum(-1) < 40
        assert near.sum() > 150


def test_film_has_no_gaps_and_shows_its_shots() -> None:
    film = make_film(np.random.default_rng(5), 61.0)
    assert film[0].start_s == 0
    assert film[-1].end_s == 61.0
    assert all(a.end_s == b.start_s for a, b in pairwise(film))
    times = np.array([0.5, 17.3, 44.1])
    frames = render_film(film, times, 48)
    for frame, t in zip(frames, times, strict=True):
        shot = scene_at(film, t)
        alone = render_scene(shot.scene, np.array([t - shot.start_s]), 48, shot.end_s - shot.start_s)[0]
        np.testing.assert_array_equal(frame, alone)


def test_same_seed_same_clip() -> None:
    first, second = (draw_clip(np.random.default_rng(11), 5, 3.0, 40) for _ in range(2))
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    assert first[1].shape == (5, 40, 40, 3)
