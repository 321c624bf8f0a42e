"""Articulated figures and places of the picture-book world, as filled polygons.

A figure is drawn in its own box: x in the direction it faces, y downwards, feet at y =
0, head at y = -1. A place is drawn on a canvas larger than the frame, so that a camera
can pan and zoom.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Colour = tuple[float, float, float]
Shape = tuple[np.ndarray, Colour]

COLOUR_VALUES: dict[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (250, 214, 50),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (140, 60, 170),
    "white": (245, 245, 245),
    "black": (32, 32, 36),
    "brown": (125, 78, 42),
}
_DARK: Colour = (30, 30, 34)
_SKIN: Colour = (236, 188, 150)
_GLASS: Colour = (190, 225, 245)
_UNIT_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 21)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 21)[:-1])], 1)


def ellipse(x: float, y: float, rx: float, ry: float, colour: Colour) -> Shape:
    """A filled ellipse."""
    return np.array([x, y]) + _UNIT_CIRCLE * np.array([rx, ry]), colour


def limb(x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> Shape:
    """A straight limb from one point to another."""
    along = np.array([x1 - x0, y1 - y0])
    side = np.array([-along[1], along[0]]) / (np.linalg.norm(along) + 1e-9) * width / 2
    return np.array([[x0, y0] + side, [x1, y1] + side, [x1, y1] - side, [x0, y0] - side]), colour


def polygon(points: list[tuple[float, float]], colour: Colour) -> Shape:
    """A filled polygon."""
    return np.array(points, float), colour


def box(x0: float, y0: float, x1: float, y1: float, colour: Colour) -> Shape:
    """A filled rectangle."""
    return polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor below 1) or lighter."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return red, green, blue


def _person(colour: Colour, phase: float) -> list[Shape]:
    swing = 0.16 * np.sin(phase)
    return [
        limb(0, -0.45, -swing, 0, 0.11, shade(colour, 0.55)),
        limb(0, -0.45, swing, 0, 0.11, shade(colour, 0.55)),
        limb(0, -0.72, swing * 1.2, -0.42, 0.09, _SKIN),
        polygon([(-0.15, -0.78), (0.15, -0.78), (0.13, -0.4), (-0.13, -0.4)], colour),
        limb(0, -0.72, -swing * 1.2 + 0.04, -0.42, 0.09, _SKIN),
        ellipse(0.01, -0.88, 0.11, 0.12, _SKIN),
        polygon([(-0.12, -0.9), (-0.08, -1.0), (0.06, -1.02), (0.12, -0.95)], (70, 45, 25)),
    ]


def _four_legs(colour: Colour, phase: float, xs: tuple[float, float], top: float, width: float) -> list[Shape]:
    swing = 0.14 * np.sin(phase)
    dark = shade(colour, 0.75)
    back, front = xs
    return [
        limb(back, top, back + swing, 0, width, dark),
        limb(front, top, front - swing, 0, width, dark),
        limb(back + 0.07, top, back + 0.07 - swing, 0, width, colour),
        limb(front + 0.07, top, front + 0.07 + swing, 0, width, colour),
    ]


def _dog(colour: Colour, phase: float) -> list[Shape]:
    return [
        *_four_legs(colour, phase, (-0.42, 0.22), -0.4, 0.12),
        limb(-0.5, -0.55, -0.72, -0.8 + 0.06 * np.sin(2 * phase), 0.09, colour),
        ellipse(-0.08, -0.5, 0.48, 0.2, colour),
        ellipse(0.46, -0.74, 0.21, 0.19, colour),
        ellipse(0.66, -0.68, 0.13, 0.09, shade(colour, 0.8)),
        ellipse(0.32, -0.7, 0.08, 0.18, shade(colour, 0.6)),
        ellipse(0.53, -0.79, 0.03, 0.03, _DARK),
    ]


def _cat(colour: Colour, phase: float) -> list[Shape]:
    return [
        *_four_legs(colour, phase, (-0.3, 0.12), -0.35, 0.09),
        limb(-0.38, -0.45, -0.56, -0.98, 0.08, colour),
        ellipse(-0.06, -0.44, 0.36, 0.2, colour),
        polygon([(0.14, -0.8), (0.16, -1.04), (0.3, -0.86)], shade(colour, 0.7)),
        polygon([(0.34, -0.86), (0.48, -1.04), (0.5, -0.8)], shade(colour, 0.7)),
        ellipse(0.32, -0.72, 0.22, 0.2, colour),
        ellipse(0.26, -0.75, 0.035, 0.05, (90, 200, 90)),
        ellipse(0.42, -0.75, 0.035, 0.05, (90, 200, 90)),
    ]


def _horse(colour: Colour, phase: float) -> list[Shape]:
    mane = shade(colour, 0.45)
    return [
        *_four_legs(colour, phase, (-0.38, 0.2), -0.45, 0.09),
        limb(-0.46, -0.6, -0.62, -0.3, 0.1, mane),
        ellipse(-0.06, -0.56, 0.44, 0.17, colour),
        polygon([(0.18, -0.55), (0.4, -0.95), (0.55, -0.9), (0.36, -0.48)], colour),
        polygon([(0.18, -0.66), (0.36, -1.0), (0.44, -0.96), (0.28, -0.6)], mane),
        polygon([(0.38, -0.98), (0.74, -0.82), (0.7, -0.72), (0.42, -0.8)], colour),
        ellipse(0.5, -0.88, 0.025, 0.03, _DARK),
    ]


def _bird(colour: Colour, phase: float) -> list[Shape]:
    flap = 0.5 * np.sin(phase)
    return [
        polygon([(-0.05, -0.5), (-0.3, -0.55 - flap * 0.9), (0.12, -0.55)], shade(colour, 0.6)),
        polygon([(-0.7, -0.62), (-0.35, -0.52), (-0.7, -0.38)], shade(colour, 0.75)),
        ellipse(0, -0.48, 0.42, 0.19, colour),
        ellipse(0.42, -0.62, 0.17, 0.16, colour),
        polygon([(0.56, -0.66), (0.8, -0.58), (0.56, -0.54)], (245, 160, 30)),
        polygon([(-0.2, -0.5), (-0.12, -0.5 - flap), (0.2, -0.5)], shade(colour, 0.8)),
        ellipse(0.47, -0.66, 0.03, 0.03, _DARK),
    ]


def _fish(colour: Colour, phase: float) -> list[Shape]:
    wag = 0.14 * np.sin(phase)
    return [
        polygon([(-0.4, -0.5), (-0.8, -0.78 + wag), (-0.7, -0.5 + wag), (-0.8, -0.22 + wag)], shade(colour, 0.7)),
        polygon([(-0.2, -0.72), (0.0, -0.98), (0.2, -0.74)], shade(colour, 0.8)),
        ellipse(0.08, -0.5, 0.54, 0.29, colour),
        limb(-0.05, -0.74, -0.05, -0.26, 0.09, shade(colour, 1.35)),
        limb(0.18, -0.75, 0.18, -0.25, 0.07, shade(colour, 0.7)),
        ellipse(0.42, -0.57, 0.07, 0.07, (250, 250, 250)),
        ellipse(0.44, -0.57, 0.035, 0.035, _DARK),
    ]


def _butterfly(colour: Colour, phase: float) -> list[Shape]:
    open_ = 0.35 + 0.65 * abs(np.cos(phase))
    wings = [ellipse(side * 0.32 * open_, -0.68, 0.3 * open_, 0.28, colour) for side in (-1, 1)]
    wings += [ellipse(side * 0.26 * open_, -0.28, 0.22 * open_, 0.2, shade(colour, 0.7)) for side in (-1, 1)]
    spots = [ellipse(side * 0.34 * open_, -0.7, 0.1 * open_, 0.1, (250, 250, 210)) for side in (-1, 1)]
    return [*wings, *spots, ellipse(0, -0.5, 0.06, 0.42, _DARK), limb(0, -0.9, 0.14, -1.04, 0.03, _DARK)]


def _wheel(x: float, phase: float) -> list[Shape]:
    dx, dy = 0.09 * np.cos(phase), 0.09 * np.sin(phase)
    spoke = limb(x - dx, -0.16 - dy, x + dx, -0.16 + dy, 0.07, (200, 200, 200))
    return [ellipse(x, -0.16, 0.17, 0.17, _DARK), spoke]


def _car(colour: Colour, phase: float) -> list[Shape]:
    return [
        polygon([(-0.45, -0.5), (-0.3, -0.9), (0.28, -0.9), (0.5, -0.5)], colour),
        polygon([(-0.34, -0.52), (-0.24, -0.8), (-0.03, -0.8), (-0.03, -0.52)], _GLASS),
        polygon([(0.04, -0.52), (0.04, -0.8), (0.23, -0.8), (0.37, -0.52)], _GLASS),
        polygon([(-0.8, -0.2), (-0.8, -0.52), (0.55, -0.54), (0.82, -0.42), (0.84, -0.2)], colour),
        ellipse(0.77, -0.4, 0.05, 0.06, (255, 245, 170)),
        *_wheel(-0.45, phase),
        *_wheel(0.47, phase),
    ]


def _boat(colour: Colour, phase: float) -> list[Shape]:
    bob = 0.03 * np.sin(phase)
    return [
        limb(0, -0.3, 0, -1.02 + bob, 0.05, (110, 75, 45)),
        polygon([(0.05, -0.98 + bob), (0.5, -0.42), (0.05, -0.42)], (250, 248, 240)),
        polygon([(-0.05, -0.86 + bob), (-0.4, -0.42), (-0.05, -0.42)], (225, 222, 212)),
        polygon([(-0.75, -0.36), (0.82, -0.36), (0.55, 0.0), (-0.5, 0.0)], colour),
        limb(-0.68, -0.27, 0.72, -0.27, 0.06, shade(colour, 0.6)),
    ]


def _plane(colour: Colour, phase: float) -> list[Shape]:
    return [
        polygon([(-0.72, -0.5), (-0.86, -0.92), (-0.62, -0.92), (-0.45, -0.55)], shade(colour, 0.7)),
        polygon([(0.1, -0.55), (-0.14, -0.88), (0.02, -0.88), (0.34, -0.55)], shade(colour, 0.6)),
        ellipse(0, -0.5, 0.84, 0.16, colour),
        polygon([(0.12, -0.46), (-0.3, -0.02), (-0.08, -0.02), (0.42, -0.46)], shade(colour, 0.8)),
        *[ellipse(x, -0.55, 0.05, 0.05, _GLASS) for x in (-0.3, -0.1, 0.1, 0.3, 0.5)],
        limb(0.86, -0.5 - 0.22 * np.cos(phase), 0.86, -0.5 + 0.22 * np.cos(phase), 0.05, _DARK),
    ]


def _ball(colour: Colour, phase: float) -> list[Shape]:
    corners = phase * 0.7 + np.array([0.35, -0.35, np.pi + 0.35, np.pi - 0.35])
    stripe = np.stack([0.48 * np.cos(corners), -0.5 + 0.48 * np.sin(corners)], axis=1)
    return [
        ellipse(0, -0.5, 0.5, 0.5, colour),
        (stripe, shade(colour, 1.6) if sum(colour) < 600 else (235, 90, 90)),
        ellipse(0, -0.5, 0.13, 0.13, shade(colour, 0.6)),
    ]


def _flower(colour: Colour, phase: float) -> list[Shape]:
    sway = 0.07 * np.sin(phase)
    petals = [
        ellipse(sway + 0.21 * np.cos(a), -0.74 + 0.21 * np.sin(a), 0.15, 0.15, colour)
        for a in np.linspace(0, 2 * np.pi, 7)[:-1]
    ]
    return [
        limb(0, 0, sway, -0.6, 0.07, (45, 125, 50)),
        ellipse(0.17, -0.26, 0.17, 0.07, (60, 150, 60)),
        ellipse(-0.17, -0.18, 0.17, 0.07, (60, 150, 60)),
        *petals,
        ellipse(sway, -0.74, 0.13, 0.13, (250, 190, 40)),
    ]


_DRAWN = (_person, _dog, _cat, _horse, _bird, _fish, _butterfly, _car, _boat, _plane, _ball, _flower)
FIGURES: dict[str, Callable[[Colour, float], list[Shape]]] = {draw.__name__[1:]: draw for draw in _DRAWN}


def _fill(canvas: np.ndarray, shape: Shape) -> None:
    size = canvas.shape[0]
    cv2.fillPoly(canvas, [np.round(shape[0] * size * 16).astype(np.int32)], shape[1], cv2.LINE_AA, 4)


def _gradient(size: int, top: Colour, bottom: Colour) -> np.ndarray:
    mix = np.linspace(0, 1, size)[:, None, None]
    rows = (1 - mix) * np.array(top) + mix * np.array(bottom)
    return np.broadcast_to(rows, (size, size, 3)).astype(np.uint8).copy()


def _ground(canvas: np.ndarray, horizon: float, colour: Colour, far: float = 0.8) -> None:
    size = canvas.shape[0]
    start = int(horizon * size)
    mix = np.linspace(far, 1.05, size - start)[:, None, None]
    canvas[start:] = np.clip(mix * np.array(colour), 0, 255).astype(np.uint8)


def _beach(canvas: np.ndarray, rng: np.random.Generator) -> None:
    _ground(canvas, 0.46, (40, 135, 190))
    _ground(canvas, 0.6, (238, 212, 150), 0.95)
    _fill(canvas, ellipse(rng.uniform(0.25, 0.75), 0.3, 0.06, 0.06, (255, 240, 170)))
    x = rng.choice([0.2, 0.8]) + rng.uniform(-0.06, 0.06)
    _fill(canvas, limb(x, 0.68, x + 0.03, 0.36, 0.03, (120, 85, 50)))
    for a in np.linspace(0, 2 * np.pi, 7)[:-1]:
        _fill(canvas, limb(x + 0.03, 0.36, x + 0.03 + 0.12 * np.cos(a), 0.36 + 0.08 * np.sin(a), 0.035, (40, 130, 60)))


def _sea(canvas: np.ndarray, rng: np.random.Generator) -> None:
    _ground(canvas, 0.4, (25, 95, 165), 1.15)
    for _ in range(16):
        x, y = rng.uniform(0.05, 0.95), rng.uniform(0.45, 0.95)
        _fill(canvas, ellipse(x, y, 0.05, 0.007, (150, 200, 230)))
    for _ in range(3):
        x = rng.uniform(0.1, 0.9)
        _fill(canvas, ellipse(x, 0.26 + rng.uniform(-0.04, 0.06), 0.1, 0.03, (250, 250, 250)))


def _forest(canvas: np.ndarray, rng: np.random.Generator) -> None:
    _ground(canvas, 0.62, (75, 120, 50))
    for x in np.sort(rng.uniform(0, 1, 9)):
        y = rng.uniform(0.6, 0.7)
        green = shade((28, 95, 45), rng.uniform(0.8, 1.3))
        _fill(canvas, limb(x, y, x, y - 0.2, 0.035, (85, 58, 35)))
        _fill(canvas, polygon([(x - 0.1, y - 0.12), (x, y - 0.46), (x + 0.1, y - 0.12)], green))


def _city(canvas: np.ndarray, rng: np.random.Generator, lit: bool = False) -> None:
    _ground(canvas, 0.68, (105, 105, 110) if not lit else (45, 45, 58))
    for x in np.arange(-0.02, 1.0, 0.13):
        top = rng.uniform(0.25, 0.5)
        wall = shade((160, 130, 120) if not lit else (42, 42, 68), rng.uniform(0.75, 1.15))
        _fill(canvas, box(x, top, x + 0.115, 0.68, wall))
        for row in np.arange(top + 0.04, 0.62, 0.075):
            for column in (x + 0.02, x + 0.065):
                bright = lit and rng.random() < 0.55
                pane = (255, 220, 110) if bright else (95, 115, 140) if not lit else (30, 30, 50)
                _fill(canvas, box(column, row, column + 0.03, row + 0.04, pane))
    for x in np.arange(0.05, 1.0, 0.2):
        _fill(canvas, box(x, 0.84, x + 0.1, 0.855, (225, 225, 210)))


def _night_street(canvas: np.ndarray, rng: np.random.Generator) -> None:
    for _ in range(14):
        _fill(canvas, ellipse(rng.uniform(0, 1), rng.uniform(0, 0.35), 0.006, 0.006, (240, 240, 220)))
    _city(canvas, rng, lit=True)
    x = rng.uniform(0.25, 0.75)
    _fill(canvas, limb(x, 0.72, x, 0.38, 0.02, (20, 20, 24)))
    _fill(canvas, ellipse(x, 0.37, 0.045, 0.045, (255, 235, 150)))


def _snow(canvas: np.ndarray, rng: np.random.Generator) -> None:
    for x in (rng.uniform(0.1, 0.35), rng.uniform(0.55, 0.9)):
        h = rng.uniform(0.26, 0.36)
        _fill(canvas, polygon([(x - 0.32, 0.62), (x, h), (x + 0.32, 0.62)], (120, 140, 170)))
        _fill(canvas, polygon([(x - 0.11, h + 0.115), (x, h), (x + 0.11, h + 0.115)], (245, 248, 252)))
    _ground(canvas, 0.6, (232, 240, 248), 0.97)
    for _ in range(28):
        _fill(canvas, ellipse(rng.uniform(0, 1), rng.uniform(0, 1), 0.009, 0.009, (255, 255, 255)))


def _desert(canvas: np.ndarray, rng: np.random.Generator) -> None:
    _ground(canvas, 0.56, (222, 160, 88))
    for x in (rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.9)):
        _fill(canvas, ellipse(x, 0.62, 0.34, 0.1, (205, 140, 72)))
    x = rng.choice([0.22, 0.78]) + rng.uniform(-0.07, 0.07)
    left = x - 0.08
    for part in ((x, 0.7, x, 0.4), (x, 0.58, left, 0.58), (left, 0.59, left, 0.47), (x, 0.55, x + 0.07, 0.55)):
        _fill(canvas, limb(*part, 0.045, (60, 125, 65)))
    _fill(canvas, ellipse(rng.uniform(0.3, 0.7), 0.24, 0.07, 0.07, (255, 250, 220)))


def _room(canvas: np.ndarray, rng: np.random.Generator) -> None:
    wall = shade((200, 165, 185), rng.uniform(0.85, 1.15))
    _ground(canvas, 0.0, wall, 1.0)
    _ground(canvas, 0.68, (150, 100, 62), 0.9)
    x = rng.uniform(0.25, 0.6)
    _fill(canvas, box(x - 0.012, 0.268, x + 0.232, 0.512, (120, 80, 55)))
    _fill(canvas, box(x, 0.28, x + 0.22, 0.5, (165, 215, 245)))
    _fill(canvas, box(x + 0.1, 0.28, x + 0.12, 0.5, (120, 80, 55)))
    side = 0.12 if x > 0.42 else 0.78
    _fill(canvas, box(side, 0.42, side + 0.14, 0.72, (100, 65, 45)))
    for y in (0.5, 0.58, 0.66):
        _fill(canvas, box(side + 0.015, y - 0.05, side + 0.125, y, shade((200, 90, 60), rng.uniform(0.6, 1.3))))


_PLACES: dict[str, tuple[Callable[[np.ndarray, np.random.Generator], None], Colour, Colour]] = {
    "beach": (_beach, (110, 190, 240), (215, 238, 250)),
    "sea": (_sea, (130, 185, 225), (205, 228, 240)),
    "forest": (_forest, (150, 200, 205), (205, 225, 190)),
    "city": (_city, (165, 180, 200), (215, 220, 225)),
    "snow": (_snow, (165, 190, 220), (225, 235, 245)),
    "desert": (_desert, (120, 185, 235), (250, 225, 185)),
    "night street": (_night_street, (10, 12, 38), (38, 34, 80)),
    "room": (_room, (200, 165, 185), (200, 165, 185)),
}
"""How each place is drawn, and the colours of its sky, top and bottom."""


def draw_place(place: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A place, uint8 (size, size, 3) RGB; ``rng`` varies trees, buildings and clouds."""
    draw, top, bottom = _PLACES[place]
    canvas = _gradient(size, top, bottom)
    draw(canvas, rng)
    return canvas
