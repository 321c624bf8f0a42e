"""What one of accelerate's trackers is told of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.artefacts import read_note
from mindvideo.config import Recipe
from mindvideo.data.store import person_folders
from mindvideo.data.windows import spread_evenly
from mindvideo.errors import SettingError
from mindvideo.stages import Progress, Stage

SAMPLES = 4
"""Clips that are logged."""


class Tracker:
    """The tracker that ``track`` names; it writes its files, if any, to ``RUN/track``.

    SettingError where its library is not installed.
    """

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        assert recipe.track is not None
        self._data = recipe.data
        kind: Any = LOGGER_TYPE_TO_CLASS[recipe.track]
        place = {"logging_dir": run_dir / "track"} if kind.requires_logging_directory else {}
        try:
            self._tracker = kind(recipe.name, **place)
            self._tracker.start()
        except ImportError as error:
            raise SettingError(
                f"expected the library of track={recipe.track} to be installed, found: {error}; install it (pip install "
                f"{recipe.track.replace('_', '-')}), or leave 'track' out"
            ) from None

    def watch(self, stage: Stage, progress: Progress | None) -> Progress | None:
        """A stage's ``progress`` that also gives the metrics of each step to the tracker."""
        if not stage.trains:
            return progress

        def tell(done: int, total: int, figures: dict[str, Any]) -> None:
            self._tracker.log({f"{stage.name}/{name}": float(value) for name, value in figures.items()}, step=done)
            if progress is not None:
                progress(done, total, figures)

        return tell

    def tell_result(self, stage: str, run_dir: Path) -> None:
        """Log a finished stage's clips, truth above reconstruction, or its scores."""
        if stage == "reconstruct" and hasattr(self._tracker, "log_images"):
            first = person_folders(self._data, run_dir / "reconstruct")[0]
            clips = zarr.open_group(first / "clips.zarr", mode="r")
            truth, made = (np.asarray(clips[name]) for name in ("truth", "reconstruction"))
            strips = [
                np.concatenate([np.concatenate(each[index], axis=1) for each in (truth, made)])
                for index in spread_evenly(len(truth), SAMPLES)
            ]
            layout = {"dataformats": "NHWC"} if self._tracker.name == "tensorboard" else {}
            self._tracker.log_images(
                {"reconstruct/truth above reconstruction": np.concatenate(strips)[None]}, step=0, **layout
            )
        if stage == "evaluate":
            scores = read_note(run_dir / "evaluate" / "scores.json")
            for name, entry in scores.items():
                if isinstance(entry, dict) and "value" in entry:
                    values = {"reconstruction": entry["value"], **entry["controls"]}
                    known = {f"evaluate/{name}/{label}": value for label, value in values.items() if value is not None}
                    self._tracker.log(known, step=0)

    def finish(self) -> None:
        """Write what is left and let go."""
        self._tracker.finish()
