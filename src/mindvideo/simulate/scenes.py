"""Short films of a picture-book world, with captions.

A *scene* is one composition, a *shot* a scene shown for a while, a *film* a list of
shots. Some thing-place-motion combinations are held out of training. Positions are
fractions of the frame, x to the right, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from mindvideo.simulate.figures import COLOUR_VALUES, FIGURES, draw_place, shade

THINGS = tuple(FIGURES)
COLOURS = tuple(COLOUR_VALUES)
PLACES = ("beach", "sea", "forest", "city", "snow", "desert", "night street", "room")
MOTIONS = ("left", "right", "up", "down", "still", "turning")
SIZES = ("small", "big")
SPEEDS = ("slow", "fast")
CAMERAS = ("static", "pan left", "pan right", "zoom in", "zoom out")
LIGHTS = ("day", "sunset", "dusk")
COLUMNS = ("left", "middle", "right")
ROWS = ("high", "low")
SEEN = (0.14, 0.86)
"""Where the centre of a scene's thing may be, across and down, at any time it is shown."""
COLUMN_BINS = ((0.0, 0.35), (0.41, 0.59), (0.65, 1.0))
ROW_BINS = ((0.0, 0.38), (0.6, 1.0))
"""Centres called left, middle, right, and high, low; the gaps have no name."""
WORLD = 2
"""Version of pictures and captions; networks trained on another do not fit."""

_VELOCITY = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0), "turning": (0, 0)}
_SPEED_PER_S = {"slow": 0.08, "fast": 0.17}
_LEGS = ("person", "dog", "cat", "horse")
_FLOATING = ("bird", "butterfly", "plane", "fish")
_GROUND_Y = 0.86
_WIDE = {"car": 0.62, "plane": 0.62, "boat": 0.68, "fish": 0.72, "bird": 0.78, "dog": 0.82, "horse": 0.92}
_VERB = {"bird": "flying", "butterfly": "flying", "plane": "flying", "fish": "swimming", "car": "driving",
         "boat": "sailing", "ball": "rolling", "flower": "drifting"}  # fmt: skip
_WHERE = {"beach": "on a beach", "sea": "on the sea", "forest": "in a forest", "city": "in a city",
          "snow": "in the snow", "desert": "in a desert", "night street": "on a night street", "room": "in a room"}  # fmt: skip
SYNONYMS: dict[str, tuple[str, ...]] = {
    "dog": ("puppy",), "cat": ("kitten",), "horse": ("pony",), "car": ("automobile",), "boat": ("ship",),
    "plane": ("airplane",), "person": ("human",), "small": ("little", "tiny"), "big": ("large", "huge"),
    "forest": ("wood",), "city": ("town",), "sea": ("ocean",), "beach": ("shore",), "black": ("dark",),
    "still": ("quietly",), "sunset": ("evening",),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One composition, shown for ``duration_s``; ``seed`` decides all else."""

    thing: str
    colour: str
    size: str
    place: str
    motion: str
    speed: str
    camera: str
    light: str
    other: tuple[str, str] | None
    duration_s: float
    seed: int


def is_held_out(thing: str, place: str, motion: str) -> bool:
    """Whether a thing-place-motion combination is held out of training (about one in seven)."""
    code = 3 * THINGS.index(thing) + 5 * PLACES.index(place) + 2 * MOTIONS.index(motion)
    return code % 7 == 3


def draw_scene(rng: np.random.Generator, held_out: bool | None = False, duration_s: float = 4.0) -> Scene:
    """Draw a scene whose thing stays in view: held out (True), from training (False), or any."""
    while True:
        thing, place, motion = (str(rng.choice(names)) for names in (THINGS, PLACES, MOTIONS))
        if held_out is not None and is_held_out(thing, place, motion) != held_out:
            continue
        camera = "static" if rng.random() < 0.6 else str(rng.choice(CAMERAS[1:]))
        light = "day" if rng.random() < 0.6 or place in ("night street", "room") else str(rng.choice(LIGHTS[1:]))
        other = None
        if rng.random() < 0.15:
            second = [name for name in THINGS if name != thing]
            other = (str(rng.choice(second)), str(rng.choice(COLOURS)))
        colour, size, speed = (str(rng.choice(names)) for names in (COLOURS, SIZES, SPEEDS))
        seed = int(rng.integers(2**31))
        scene = Scene(thing, colour, size, place, motion, speed, camera, light, other, duration_s, seed)
        (left, right), (top, bottom) = _room_for(scene)
        if left <= right and top <= bottom:
            return scene


def _action(scene: Scene) -> str:
    legs = scene.thing in _LEGS
    slowly = "slowly" if scene.speed == "slow" else "quickly"
    if scene.motion == "still":
        return "standing still" if legs else "resting still"
    if scene.motion == "turning":
        return f"turning {slowly} around"
    if legs:
        return f"{'walking' if scene.speed == 'slow' else 'running'} {scene.motion}"
    return f"{_VERB[scene.thing]} {slowly} {scene.motion}"


def locate(scene: Scene, t: float) -> tuple[str | None, str | None]:
    """Column and row of a scene's thing at ``t`` seconds, as captions name them, or None.

    Only what floats, or moves up or down, has a row.
    """
    x, y = thing_centre(scene, t)
    column = _bin_of(x, COLUMN_BINS, COLUMNS)
    has_row = scene.thing in _FLOATING or scene.motion in ("up", "down")
    return column, _bin_of(y, ROW_BINS, ROWS) if has_row else None


def _bin_of(value: float, bins: tuple[tuple[float, float], ...], names: tuple[str, ...]) -> str | None:
    return next((name for name, (low, high) in zip(names, bins, strict=True) if low <= value <= high), None)


def _whereabouts(column: str | None, row: str | None) -> str:
    if column is None:
        return {None: "", "high": " high above", "low": " low below"}[row]
    return f"{f' {row}' if row else ''} {'in' if column == 'middle' else 'on'} the {column}"


def scene_caption(
    scene: Scene, where: tuple[str | None, str | None] = (None, None), rng: np.random.Generator | None = None
) -> str:
    """The sentence for a scene whose thing is ``where``; ``rng`` brings in synonyms.

    For example "a small brown dog on the left running right on a beach at sunset, zooming in".
    """
    who = f"a {scene.size} {scene.colour} {scene.thing}{_whereabouts(*where)}"
    if scene.other is not None:
        who += f" and a {scene.other[1]} {scene.other[0]}"
    words = f"{who} {_action(scene)} {_WHERE[scene.place]}"
    words += {"day": "", "sunset": " at sunset", "dusk": " at dusk"}[scene.light]
    kind, _, way = scene.camera.partition(" ")
    words += "" if kind == "static" else f", {'panning' if kind == 'pan' else 'zooming'} {way}"
    if rng is not None:
        swapped = []
        for word in words.split(" "):
            bare = word.rstrip(",")
            if bare in SYNONYMS and rng.random() < 0.2:
                word = str(rng.choice(SYNONYMS[bare])) + word[len(bare) :]
            swapped.append(word)
        words = " ".join(swapped)
    return words


@dataclass(frozen=True)
class _Staging:
    """What ``Scene.seed`` decides; positions are those in the middle of the shot."""

    x: float
    y: float
    height: float
    facing: int
    phase: float
    other_x: float
    other_height: float


_MARGIN = 0.25
_SUPERSAMPLE = 2


def _room_for(scene: Scene) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of x and y, mid-shot, from which the thing's centre stays within `SEEN`."""
    ranges = []
    for axis in (0, 1):
        lows, highs = [], []
        for t in np.linspace(0, scene.duration_s, 9):
            zoom, pan = _camera(scene, t)
            shift = (pan if axis == 0 else 0.0) - _travel(scene, t)[axis]
            lows.append(0.5 + (SEEN[0] - 0.5) / zoom + shift)
            highs.append(0.5 + (SEEN[1] - 0.5) / zoom + shift)
        ranges.append((max(lows), min(highs)))
    return ranges[0], ranges[1]


def _place_within(rng: np.random.Generator, low: float, high: float, parts: tuple[tuple[float, float], ...]) -> float:
    """A number in one of some parts (fractions) of a range, each part as likely."""
    start, stop = parts[int(rng.integers(len(parts)))]
    return float(low + (high - low) * rng.uniform(start, stop))


@lru_cache(maxsize=4096)
def _stage(scene: Scene) -> _Staging:
    rng = np.random.default_rng(scene.seed)
    height = rng.uniform(0.28, 0.38) if scene.size == "small" else rng.uniform(0.48, 0.64)
    height *= _WIDE.get(scene.thing, 1.0)
    (left, right), (top, bottom) = _room_for(scene)
    across = ((0.0, 1.0),) if scene.motion in ("left", "right") else ((0.0, 0.28), (0.4, 0.6), (0.72, 1.0))
    x = _place_within(rng, left, right, across)
    if scene.motion in ("up", "down"):
        y = _place_within(rng, top, bottom, ((0.0, 1.0),))
    elif scene.thing in _FLOATING:
        y = _place_within(rng, max(top, 0.5 * height), min(bottom, 0.78), ((0.0, 0.25), (0.75, 1.0)))
    else:
        y = float(np.clip(_GROUND_Y + rng.uniform(-0.04, 0.04) - height / 2, top, bottom))
    facing = {"left": -1, "right": 1}.get(scene.motion, int(rng.choice([-1, 1])))
    side = 1 if x < 0.5 else -1
    return _Staging(x, y, height, facing, rng.uniform(0, 6), x + side * rng.uniform(0.28, 0.36), rng.uniform(0.2, 0.26))


def _travel(scene: Scene, t: float) -> tuple[float, float]:
    """How far the thing is, across and down, from where it is in the middle of the shot."""
    way = _SPEED_PER_S[scene.speed] * (t - scene.duration_s / 2)
    return way * _VELOCITY[scene.motion][0], way * _VELOCITY[scene.motion][1]


def thing_centre(scene: Scene, t: float) -> tuple[float, float]:
    """Centre of a scene's thing on the screen at ``t`` seconds from its start."""
    staging, (zoom, pan), (dx, dy) = _stage(scene), _camera(scene, t), _travel(scene, t)
    return 0.5 + zoom * (staging.x + dx - 0.5 - pan), 0.5 + zoom * (staging.y + dy - 0.5)


@lru_cache(maxsize=64)
def _background(place: str, seed: int, size: int) -> np.ndarray:
    canvas_size = int(size * (1 + 2 * _MARGIN))
    return draw_place(place, np.random.default_rng([seed, 1]), canvas_size)


def _camera(scene: Scene, t: float) -> tuple[float, float]:
    """Zoom factor and horizontal offset (frame widths) at ``t`` seconds."""
    progress = t / max(scene.duration_s, 2.0) - 0.5
    if scene.camera.startswith("pan"):
        way = 1 if scene.camera.endswith("right") else -1
        return 1.0, way * 0.36 * np.clip(progress, -0.6, 0.6)
    if scene.camera.startswith("zoom"):
        way = 1 if scene.camera.endswith("in") else -1
        return float(np.exp(way * 0.7 * np.clip(progress, -0.6, 0.6))), 0.0
    return 1.0, 0.0


_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.08, 0.78, 0.6), "dusk": (0.5, 0.52, 0.72)}


def _draw_figure(
    canvas: np.ndarray,
    what: tuple[str, str],
    place: tuple[float, float],
    height: float,
    flip: float,
    phase: float,
    view: np.ndarray,
) -> None:
    """Draw a thing standing at ``place``; ``view`` (2, 3) maps frame fractions to pixels."""
    (thing, colour), (x, y) = what, place
    value = COLOUR_VALUES[colour]
    shapes = FIGURES[thing](value, phase)
    placed = [(points * [flip * height, height] + [x, y]) @ view[:, :2].T + view[:, 2] for points, _ in shapes]
    outline = [np.round(points * 16).astype(np.int32) for points in placed]
    edge = shade(value, 0.3) if colour != "black" else (95.0, 95.0, 105.0)
    cv2.polylines(canvas, outline, True, edge, 2, cv2.LINE_AA, 4)
    for points, (_, fill) in zip(outline, shapes, strict=True):
        cv2.fillPoly(canvas, [points], fill, cv2.LINE_AA, 4)


def render_scene(scene: Scene, times_s: np.ndarray, size: int = 64, hide_thing: bool = False) -> np.ndarray:
    """A scene at times (T,), with or without its thing: RGB, uint8 (T, size, size, 3)."""
    staging = _stage(scene)
    big = size * _SUPERSAMPLE
    background = _background(scene.place, scene.seed, big)
    frames = np.empty((len(times_s), size, size, 3), np.uint8)
    gait = 5.0 if scene.speed == "slow" else 11.0
    tint = np.array(_LIGHT[scene.light], np.float32)
    for number, t in enumerate(np.asarray(times_s, float)):
        zoom, pan = _camera(scene, t)
        view = np.array([[zoom, 0, 0.5 - zoom * (0.5 + pan)], [0, zoom, 0.5 - zoom * 0.5]]) * big
        matrix = np.array([[zoom, 0, view[0, 2] - zoom * _MARGIN * big], [0, zoom, view[1, 2] - zoom * _MARGIN * big]])
        canvas = cv2.warpAffine(background, matrix, (big, big), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        dx, dy = _travel(scene, t)
        phase = staging.phase + gait * t * (1.0 if scene.motion != "still" else 0.15)
        flip = float(staging.facing)
        if scene.motion == "turning":
            flip *= float(np.cos(2 * np.pi * t * (0.3 if scene.speed == "slow" else 0.6)))
            flip = np.sign(flip) * max(abs(flip), 0.15)
        feet = staging.y + staging.height / 2 + dy
        if scene.other is not None:
            at, height = (staging.other_x + dx, feet), staging.other_height
            _draw_figure(canvas, scene.other, at, height, staging.facing, phase + 1.0, view)
        if not hide_thing:
            _draw_figure(canvas, (scene.thing, scene.colour), (staging.x + dx, feet), staging.height, flip, phase, view)
        small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
        frames[number] = small if scene.light == "day" else np.clip(small * tint, 0, 255).astype(np.uint8)
    return frames


@dataclass(frozen=True)
class Shot:
    """A scene shown from ``start_s`` to ``end_s`` of a film."""

    scene: Scene
    start_s: float
    end_s: float


def make_film(
    rng: np.random.Generator, duration_s: float, tr_s: float = 2.0, held_out: bool | None = False
) -> list[Shot]:
    """Draw a film's shots, of one to four TRs; one cut in five is inside a TR."""
    shots: list[Shot] = []
    start, boundary = 0.0, 0.0
    while start < duration_s - 1e-6:
        boundary += tr_s * float(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.3, 0.2]))
        end = boundary if rng.random() < 0.8 else boundary - tr_s * float(rng.uniform(0.25, 0.75))
        end = duration_s if boundary >= duration_s - 1e-6 else end
        shots.append(Shot(draw_scene(rng, held_out, end - start), start, end))
        start = end
    return shots


def scene_at(film: list[Shot], t: float) -> Shot:
    """The shot on screen at ``t`` seconds (the last one past the end)."""
    return next((shot for shot in film if t < shot.end_s - 1e-9), film[-1])


def render_film(film: list[Shot], times_s: np.ndarray, size: int = 64, hide_thing: bool = False) -> np.ndarray:
    """Render a film at ascending times (T,) in seconds: (T, size, size, 3) uint8."""
    times = np.asarray(times_s, float)
    starts = np.array([shot.start_s for shot in film])
    index = np.clip(np.searchsorted(starts, times + 1e-9, side="right") - 1, 0, len(film) - 1)
    frames = np.empty((len(times), size, size, 3), np.uint8)
    for number in np.unique(index):
        chosen = np.flatnonzero(index == number)
        frames[chosen] = render_scene(film[number].scene, times[chosen] - film[number].start_s, size, hide_thing)
    return frames


def film_caption(film: list[Shot], start_s: float, end_s: float, rng: np.random.Generator | None = None) -> str:
    """The caption of a stretch of a film, "A. Then B" across a cut."""
    parts = []
    for shot in film:
        first, last = max(start_s, shot.start_s), min(end_s, shot.end_s)
        if last - first > 1e-6:
            where = locate(shot.scene, (first + last) / 2 - shot.start_s)
            parts.append(scene_caption(shot.scene, where, rng))
    return ". Then ".join(parts)


@dataclass(frozen=True)
class Clip:
    """A stretch of a film of one or two shots; ``times_s`` (F,) are its frames' times."""

    film: list[Shot]
    times_s: np.ndarray

    @property
    def scene(self) -> Scene:
        """The scene, or the first of two."""
        return self.film[0].scene

    def caption(self, rng: np.random.Generator | None = None) -> str:
        """The stretch's caption; with ``rng`` some words become synonyms."""
        step = self.times_s[1] - self.times_s[0] if len(self.times_s) > 1 else 1e-3
        return film_caption(self.film, self.times_s[0], self.times_s[-1] + step, rng)

    def frames(self, size: int = 64) -> np.ndarray:
        """(F, size, size, 3) uint8."""
        return render_film(self.film, self.times_s, size)


def plan_clip(rng: np.random.Generator, num_frames: int = 6, fps: float = 3.0, with_cut: bool = False) -> Clip:
    """A clip from a shot of 2 to 8 seconds; ``with_cut``, a second shot begins in it."""
    duration = float(rng.choice([2, 4, 6, 8]))
    first = Shot(draw_scene(rng, duration_s=duration), 0.0, duration)
    length = num_frames / fps
    if not with_cut:
        return Clip([first], rng.uniform(0, max(0.0, duration - length)) + np.arange(num_frames) / fps)
    after = float(rng.choice([2, 4, 6]))
    second = Shot(draw_scene(rng, duration_s=after), duration, duration + after)
    start = duration - length * rng.uniform(0.25, 0.75)
    return Clip([first, second], start + np.arange(num_frames) / fps)
