"""Random numbers by what is drawn."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What is drawn from a seed, each from a stream of its own."""

    SUBJECT, FILM, CAST, RUN, CONTROLS, PERSON, MOVIE, PERSON_RUN, OWN, SCENES = range(10)


def draw_from(seed: int, what: Draw, *number: int) -> np.random.Generator:
    """The generator of one thing, whatever else is drawn before it."""
    return np.random.default_rng(np.random.SeedSequence([seed, what, *number]))
