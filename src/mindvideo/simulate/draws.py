"""Random numbers by what is drawn, and a count of the files that are written."""

from __future__ import annotations

import time
from enum import IntEnum

import numpy as np

from mindvideo.stages import Progress


class Draw(IntEnum):
    """What is drawn from a seed, each from a stream of its own."""

    SUBJECT, FILM, CAST, RUN, CONTROLS, PERSON, MOVIE, PERSON_RUN, OWN, SCENES = range(10)


def draw_from(seed: int, what: Draw, *number: int) -> np.random.Generator:
    """The generator of one thing, whatever else is drawn before it."""
    return np.random.default_rng(np.random.SeedSequence([seed, what, *number]))


class FileCount:
    """Counts files and tells the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.count, self.start = progress, total, 0, time.perf_counter()

    def add(self, count: int = 1) -> None:
        """Count some more."""
        self.count += count
        if self.progress is not None and count:
            self.progress(self.count, self.total, {"seconds": time.perf_counter() - self.start})
