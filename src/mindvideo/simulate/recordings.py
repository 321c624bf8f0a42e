"""Write a simulated subject in the layout of Wen 2018, and simulated people in the layout of HCP.

Every file is drawn from (seed, what it is, its number) alone, so the order of writing and interruptions change nothing;
files that are already there are kept, and a file appears only when it is complete.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo import atlas
from mindvideo.config import Simulate
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.disk import disk_errors, write_text
from mindvideo.data.video import write_video
from mindvideo.errors import DataError, SettingError
from mindvideo.simulate.features import film_features
from mindvideo.simulate.scenes import (
    WORLD,
    Shot,
    draw_scene,
    film_caption,
    is_held_out,
    locate,
    make_film,
    render_film,
)
from mindvideo.simulate.subject import SimulatedSubject
from mindvideo.simulate.tuning import AREA_TUNING, areas_of
from mindvideo.stages import Progress, StageContext

TR_S = 2.0
PERSON_TR_S = 0.72
AFTER_FILM_S = 10.0
FRAMES_HZ = 3
"""How often ``truth/scenes.json`` says where a scene's thing is."""
PERSON_AREAS = ("V1", "V2", "V3", "V4")

_SUBJECT, _FILM, _CAST, _RUN, _CONTROLS, _PERSON, _MOVIE, _PERSON_RUN = range(8)
_TEST_OFFSET = 10_000


def _rng(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, *path]))


@dataclass(frozen=True)
class Segment:
    """One film and its recordings."""

    name: str
    number: int
    runs: int
    duration_s: float

    @property
    def is_test(self) -> bool:
        """Whether this is a test film."""
        return self.name.startswith("test")

    @property
    def index(self) -> int:
        """A number no other segment has."""
        return self.number + _TEST_OFFSET * self.is_test

    @property
    def times_s(self) -> np.ndarray:
        """Film time of every volume: from 2 s on (``seg*``, ``test1``) or from 0 s on, to 10 s after the film."""
        first = 0.0 if self.is_test and self.number > 1 else TR_S
        n_volumes = round((self.duration_s + AFTER_FILM_S - first) / TR_S) + 1
        return first + TR_S * np.arange(n_volumes)

    def film(self, seed: int) -> list[Shot]:
        """The film; in test films about half of the shots are compositions that no training film has."""
        film = make_film(_rng(seed, _FILM, self.index), self.duration_s, TR_S, held_out=None if self.is_test else False)
        if not self.is_test:
            return film
        rng = _rng(seed, _CAST, self.index)
        return [
            replace(shot, scene=draw_scene(rng, True, shot.end_s - shot.start_s)) if rng.random() < 0.5 else shot
            for shot in film
        ]


def list_segments(settings: Simulate) -> list[Segment]:
    """Training and test segments of the settings.

    Raises
    ------
    SettingError
        If the length is no whole number of TRs.
    """
    if abs(settings.segment_s / TR_S - round(settings.segment_s / TR_S)) > 1e-9:
        raise SettingError(
            f"expected simulate.segment_s as a multiple of the TR ({TR_S:g} s), found {settings.segment_s:g}; round it"
        )
    train = [
        Segment(f"seg{i}", i, settings.train_runs, settings.segment_s) for i in range(1, settings.train_segments + 1)
    ]
    test = [
        Segment(f"test{i}", i, settings.test_runs, settings.segment_s) for i in range(1, settings.test_segments + 1)
    ]
    return train + test


def choose_vertices(areas: str, seed: int) -> np.ndarray:
    """Cortical positions the files hold, ascending int32.

    ``cortex``: all. ``visual``: the visual areas, and about as many vertices of whole other areas, drawn at random among
    those that do not answer to films, as uninformative controls.
    """
    if areas == "cortex":
        return np.arange(atlas.N_CORTEX, dtype=np.int32)
    visual = atlas.visual_areas()
    others = sorted(set(areas_of(np.arange(atlas.N_CORTEX))) - set(AREA_TUNING))
    chosen = [visual]
    for name in _rng(seed, _CONTROLS).permutation(others):
        if sum(map(len, chosen)) >= 2 * len(visual):
            break
        chosen.append(atlas.area_of(str(name)))
    return np.sort(np.concatenate(chosen)).astype(np.int32)


@lru_cache(maxsize=1)
def _subject(areas: str, seed: int) -> SimulatedSubject:
    return SimulatedSubject.create(_rng(seed, _SUBJECT), choose_vertices(areas, seed))


def _fmri_path(out: Path, segment: Segment, run: int) -> Path:
    folder = out / "subject1" / "fmri" / segment.name / "cifti"
    return folder / f"{segment.name}_{run}_Atlas.dtseries.nii"


def _film_path(out: Path, segment: Segment) -> Path:
    return out / "stimuli" / f"{segment.name}.mp4"


def _files(out: Path, segment: Segment) -> list[Path]:
    return [_film_path(out, segment), *(_fmri_path(out, segment, run) for run in range(1, segment.runs + 1))]


def _frames(film: list[Shot], settings: Simulate) -> Iterator[np.ndarray]:
    times = np.arange(round(settings.segment_s * settings.source_fps)) / settings.source_fps
    for start in range(0, len(times), 300):
        yield from render_film(film, times[start : start + 300], settings.size)


def write_segment(
    settings: Simulate, out: Path, seed: int, segment: Segment, done: Callable[[], None] = lambda: None
) -> None:
    """Write the film and the recordings of one segment that are not there yet; ``done`` is called after every file."""
    film = segment.film(seed)
    path = _film_path(out, segment)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, _frames(film, settings), settings.source_fps, settings.size)
        done()
    missing = [run for run in range(1, segment.runs + 1) if not _fmri_path(out, segment, run).is_file()]
    if not missing:
        return
    subject = _subject(settings.areas, seed)
    response = subject.respond(film_features(film, settings.size), segment.times_s)
    _fmri_path(out, segment, 1).parent.mkdir(parents=True, exist_ok=True)
    for run in missing:
        rng = _rng(seed, _RUN, segment.index, run)
        data = subject.record(response, TR_S, rng, settings.noise)
        subcortex = None
        if settings.subcortex:
            shape = (len(data), sum(SUBCORTEX.values()))
            subcortex = 9000 + 120 * rng.standard_normal(shape, dtype=np.float32)
        write_cortex(_fmri_path(out, segment, run), data, subject.vertex, TR_S, subcortex)
        done()


def simulate(settings: Simulate, out: Path, seed: int, progress: Progress | None = None, workers: int = 1) -> None:
    """Write a simulated subject: ``stimuli/``, ``subject1/fmri/…`` and ``truth/``, in the layout of Wen 2018.

    Parameters
    ----------
    settings : Simulate
    out : Path
        A new folder, or one an interrupted simulation with the same settings and seed left behind.
    seed : int
    progress : callable, optional
        Called with (files done, files, {"seconds": …}).
    workers : int
        Processes that write segments side by side; the files do not depend on it. With more than one, the calling
        program must be importable (``if __name__ == "__main__":``).

    Raises
    ------
    DataError
        If the folder holds another simulation, or cannot be written.
    SettingError
        If the length of the segments is no multiple of the TR.
    """
    segments = list_segments(settings)
    with disk_errors(out, "the simulated subject"):
        _claim(out, {"version": WORLD, "seed": seed, "settings": settings.model_dump(mode="json")})
        todo = [segment for segment in segments if not all(path.is_file() for path in _files(out, segment))]
        tick = _Ticker(progress, sum(len(_files(out, segment)) for segment in segments) + 1)
        tick.add(sum(path.is_file() for segment in segments for path in _files(out, segment)))
        if workers > 1 and len(todo) > 1:
            with ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn")) as pool:
                missing = [sum(not path.is_file() for path in _files(out, segment)) for segment in todo]
                jobs = [pool.submit(write_segment, settings, out, seed, segment) for segment in todo]
                for job, count in zip(jobs, missing, strict=True):
                    job.result()
                    tick.add(count)
        else:
            for segment in todo:
                write_segment(settings, out, seed, segment, tick.add)
        _write_truth(settings, out, seed, segments)
        tick.add()


class _Ticker:
    """Counts files and tells the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.count, self.start = progress, total, 0, time.perf_counter()

    def add(self, count: int = 1) -> None:
        self.count += count
        if self.progress is not None and count:
            self.progress(self.count, self.total, {"seconds": time.perf_counter() - self.start})


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Mark a folder as this simulation's, or refuse one that holds another."""
    path = out / "truth" / "settings.json"
    if not path.is_file():
        if (out / "stimuli").exists() or (out / "subject1").exists():
            raise DataError(f"expected a new folder for the simulation, found recordings in {out}; name another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(path, identity)
        return
    found = json.loads(path.read_text())
    if found != json.loads(json.dumps(identity)):
        names = sorted(set(identity["settings"]) | set(found.get("settings", {})))
        other = [n for n in names if identity["settings"].get(n) != found.get("settings", {}).get(n)]
        other += [n for n in ("seed", "version") if identity[n] != found.get(n)]
        raise DataError(
            f"expected the same simulation in {out}, found one with another {', '.join(other)}; "
            "name another folder or remove this one"
        )


def scan_captions(film: list[Shot], duration_s: float) -> list[str]:
    """Caption of every scan: of what it shows, ``A. Then B`` across a cut."""
    starts = TR_S * np.arange(round(duration_s / TR_S))
    return [film_caption(film, start, start + TR_S) for start in starts]


def _write_truth(settings: Simulate, out: Path, seed: int, segments: list[Segment]) -> None:
    """``truth/``: captions, scenes, and what every vertex is."""
    films = {segment.name: segment.film(seed) for segment in segments}
    captions = {segment.name: scan_captions(films[segment.name], segment.duration_s) for segment in segments}
    _write_json(out / "truth" / "captions.json", captions)
    scenes = {name: [_describe(shot) for shot in film] for name, film in films.items()}
    _write_json(out / "truth" / "scenes.json", scenes)
    path = out / "truth" / "vertices.npz"
    if path.is_file():
        return
    subject = _subject(settings.areas, seed)
    share = subject.reliability
    snr = np.sqrt(share / (1 - share)) / settings.noise
    partial = path.with_name(".partial-vertices.npz")
    np.savez(
        partial,
        vertex=subject.vertex,
        area=atlas.area_labels()[subject.vertex],
        kind=subject.kind,
        is_informative=subject.is_informative,
        hrf_peak_s=subject.hrf_peak_s,
        signal_to_noise=snr.astype(np.float32),
    )
    os.replace(partial, path)


def _describe(shot: Shot) -> dict[str, Any]:
    scene = shot.scene
    return {
        **asdict(scene),
        "caption": film_caption([shot], shot.start_s, shot.end_s),
        "where": [locate(scene, t) for t in np.arange(0, scene.duration_s, 1 / FRAMES_HZ)],
        "start_s": shot.start_s,
        "end_s": shot.end_s,
        "is_held_out": is_held_out(scene.thing, scene.place, scene.motion),
    }


def person_name(person: int) -> str:
    """Folder name of a simulated person, six digits as in HCP."""
    return f"{100001 + person}"


def simulate_people(settings: Simulate, out: Path, seed: int, progress: Progress | None = None) -> None:
    """Write simulated people for pre-training: areas V1–V4 at a TR of 0.72 s while watching films, as in HCP.

    Files are ``out/hcp/PERSON/MNINonLinear/Results/tfMRI_MOVIEr/tfMRI_MOVIEr_Atlas_MSMAll.dtseries.nii``. All people
    watch the same films, each with tuning, HRFs and noise of their own; films are no subject's training or test films.

    Parameters
    ----------
    settings, out, seed, progress
        As in `simulate`; ``people``, ``person_runs``, ``person_run_s`` and ``noise`` are used.

    Raises
    ------
    DataError
        If a file cannot be written.
    """
    vertex = np.sort(np.concatenate([atlas.area_of(name) for name in PERSON_AREAS]))
    n_volumes = int(settings.person_run_s / PERSON_TR_S)
    tick = _Ticker(progress, settings.people * settings.person_runs)
    people: dict[int, SimulatedSubject] = {}
    calibration: np.ndarray | None = None
    with disk_errors(out, "the simulated people"):
        for run in range(1, settings.person_runs + 1):
            paths = {person: _person_path(out, person, run) for person in range(settings.people)}
            missing = [person for person, path in paths.items() if not path.is_file()]
            tick.add(len(paths) - len(missing))
            if not missing:
                continue
            features = film_features(make_film(_rng(seed, _MOVIE, run), n_volumes * PERSON_TR_S, TR_S))
            for person in missing:
                if person not in people:
                    if calibration is None:
                        calibration = film_features(make_film(_rng(seed, _MOVIE, 0), 240.0))
                    people[person] = SimulatedSubject.create(_rng(seed, _PERSON, person), vertex, calibration)
                response = people[person].respond(features, PERSON_TR_S * np.arange(n_volumes))
                rng = _rng(seed, _PERSON_RUN, person, run)
                data = people[person].record(response, PERSON_TR_S, rng, settings.noise)
                paths[person].parent.mkdir(parents=True, exist_ok=True)
                write_cortex(paths[person], data, vertex, PERSON_TR_S)
                tick.add()


def run(context: StageContext) -> None:
    """Stage ``simulate``: the subject and the people of a recipe into ``RUN/simulate``."""
    recipe, _, folder, progress = context
    settings = recipe.simulate
    if settings is None:
        raise SettingError("expected a 'simulate' section in the recipe, found none")
    is_long = (settings.train_segments + settings.test_segments) * settings.segment_s > 1800
    workers = min(4, os.cpu_count() or 1) if is_long else 1  # the same bytes however many
    simulate(settings, folder, recipe.seed, progress=progress, workers=workers)
    simulate_people(settings, folder, recipe.seed, progress=progress)


def _person_path(out: Path, person: int, run: int) -> Path:
    name = f"tfMRI_MOVIE{run}"
    results = out / "hcp" / person_name(person) / "MNINonLinear" / "Results"
    return results / name / f"{name}_Atlas_MSMAll.dtseries.nii"
