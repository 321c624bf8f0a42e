"""Write simulated people who only serve masked pre-training, in the layout of HCP."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindvideo import atlas
from mindvideo.config import Simulate
from mindvideo.data.cifti import write_cortex
from mindvideo.data.disk import disk_errors
from mindvideo.simulate.draws import Draw, draw_from
from mindvideo.simulate.film_features import film_features
from mindvideo.simulate.scenes import make_film
from mindvideo.simulate.subject import SimulatedSubject
from mindvideo.stages import Progress, Steps

PRETRAIN_TR_S = 0.72
_AREAS = ("V1", "V2", "V3", "V4")


def simulate_pretraining(settings: Simulate, out: Path, seed: int, progress: Progress | None = None) -> None:
    """Write simulated people for pre-training to ``out/hcp``: areas V1–V4 at a TR of 0.72 s, as in HCP.

    All watch the same films, none of them the subjects', with tuning, HRFs and noise of their own.
    """
    vertex = np.sort(np.concatenate([atlas.area_of(name) for name in _AREAS]))
    n_volumes = int(settings.pretrain_run_s / PRETRAIN_TR_S)
    tick = Steps(progress, settings.pretrain_people * settings.pretrain_runs)
    people: dict[int, SimulatedSubject] = {}
    calibration: np.ndarray | None = None
    with disk_errors(out, "the simulated people"):
        for run in range(1, settings.pretrain_runs + 1):
            paths = {person: _person_path(out, person, run) for person in range(settings.pretrain_people)}
            missing = [person for person, path in paths.items() if not path.is_file()]
            tick.add(len(paths) - len(missing))
            if not missing:
                continue
            features = film_features(make_film(draw_from(seed, Draw.MOVIE, run), n_volumes * PRETRAIN_TR_S))
            for person in missing:
                if person not in people:
                    if calibration is None:
                        calibration = film_features(make_film(draw_from(seed, Draw.MOVIE, 0), 240.0))
                    people[person] = SimulatedSubject.create(draw_from(seed, Draw.PERSON, person), vertex, calibration)
                response = people[person].respond(features, PRETRAIN_TR_S * np.arange(n_volumes))
                rng = draw_from(seed, Draw.PERSON_RUN, person, run)
                data = people[person].record(response, PRETRAIN_TR_S, rng, settings.noise)
                paths[person].parent.mkdir(parents=True, exist_ok=True)
                write_cortex(paths[person], data, vertex, PRETRAIN_TR_S)
                tick.add()


def _person_path(out: Path, person: int, run: int) -> Path:
    name = f"tfMRI_MOVIE{run}"
    results = out / "hcp" / f"{100001 + person}" / "MNINonLinear" / "Results"
    return results / name / f"{name}_Atlas_MSMAll.dtseries.nii"
