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
    SEEN,
    THINGS,
    Scene,
    draw_scene,
    is_held_out,
    locate,
    make_film,
    plan_clip,
    render_film,
    render_scene,
    scene_at,
    scene_caption,
    thing_centre,
)

PLAIN = Scene("car", "red", "big", "sea", "left", "fast", "static", "day", None, duration_s=4.0, seed=4)


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
    assert scene_caption(PLAIN) == "a big red car driving quickly left on the sea"
    assert scene_caption(PLAIN, ("right", None)) == "a big red car on the right driving quickly left on the sea"
    other = replace(PLAIN, thing="dog", motion="still", other=("ball", "blue"), light="sunset", camera="zoom in")
    said = scene_caption(other, ("middle", "low"))
    assert said == "a big red dog low in the middle and a blue ball standing still on the sea at sunset, zooming in"
    assert scene_caption(replace(PLAIN, motion="up"), (None, "high")).startswith("a big red car high above driving")


def test_things_stay_in_the_frame_and_are_where_the_caption_says() -> None:
    """Over a static view: the figure's own pixels against the names of columns and rows."""
    named = {"left": 0, "middle": 0, "right": 0, "high": 0, "low": 0}
    for number in range(60):
        scene = plan_clip(np.random.default_rng([8, number])).scene
        ends = np.array([thing_centre(scene, t) for t in np.linspace(0, scene.duration_s, 25)])
        assert ends.min() >= SEEN[0] - 1e-6 and ends.max() <= SEEN[1] + 1e-6
        t = scene.duration_s / 2
        shown = [render_scene(scene, np.array([t]), hide_thing=hidden)[0].astype(int) for hidden in (False, True)]
        ys, xs = np.nonzero(np.abs(shown[0] - shown[1]).max(-1) > 12)
        x, y = (xs.min() + xs.max() + 1) / 128, (ys.min() + ys.max() + 1) / 128
        column, row = locate(scene, t)
        for name in filter(None, (column, row)):
            named[name] += 1
        assert column != "left" or x < 0.45
        assert column != "middle" or 0.3 < x < 0.7
        assert column != "right" or x > 0.55
        assert row != "high" or y < 0.48
        assert row != "low" or y > 0.52
    assert min(named.values()) >= 4


def _figure(scene: Scene, times: np.ndarray) -> np.ndarray:
    """Where a frame differs from the same scene without its figure's colour: (T, 2) centres as (y, x)."""
    other = replace(scene, colour="green")
    changed = np.abs(render_scene(scene, times).astype(int) - render_scene(other, times)).sum(-1) > 60
    return np.array([np.argwhere(mask).mean(axis=0) for mask in changed])


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_things_move_where_the_caption_says(motion: str, axis: int, sign: int) -> None:
    centres = _figure(replace(PLAIN, motion=motion, size="small"), np.array([1.2, 2.8]))
    moved = (centres[1] - centres[0])[axis] * sign
    assert moved == pytest.approx(0.17 * 1.6 * 64, abs=2.5)


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
        assert shot.scene.duration_s == pytest.approx(shot.end_s - shot.start_s)
        alone = render_scene(shot.scene, np.array([t - shot.start_s]), 48)[0]
        np.testing.assert_array_equal(frame, alone)


def test_same_seed_same_clip() -> None:
    first, second = (plan_clip(np.random.default_rng(11), 5, 3.0) for _ in range(2))
    assert first.scene == second.scene
    frames = first.frames(40)
    np.testing.assert_array_equal(frames, second.frames(40))
    assert frames.shape == (5, 40, 40, 3)


def test_a_clip_with_a_cut_tells_of_both_scenes() -> None:
    clip = plan_clip(np.random.default_rng(7), 6, 3.0, with_cut=True)
    first, second = (shot.scene for shot in clip.film)
    said = clip.caption().split(". Then ")
    assert len(said) == 2 and first.thing in said[0] and second.thing in said[1]
    change = np.abs(np.diff(clip.frames().astype(int), axis=0)).mean((1, 2, 3))
    at = int(np.searchsorted(clip.times_s, clip.film[1].start_s)) - 1
    assert change.argmax() == at
