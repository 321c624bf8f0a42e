"""Write simulated subjects in the layout of Wen 2018, and people for pre-training in that of HCP.

Every file follows from (seed, what it is, its number) alone, in whatever order files are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo import atlas
from mindvideo.config import Simulate
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.pool import local_workers
from mindvideo.data.video import write_video
from mindvideo.errors import DataError, SettingError
from mindvideo.files import beside, disk_errors, write_text
from mindvideo.simulate.draws import Draw, draw_from
from mindvideo.simulate.film_features import film_features
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
from mindvideo.simulate.truth import describe_vertices
from mindvideo.simulate.tuning import AREA_TUNING, areas_of
from mindvideo.stages import Progress, StageContext, Steps

TR_S, PRETRAIN_TR_S = 2.0, 0.72
AFTER_FILM_S = 10.0
FRAMES_HZ = 3
"""How often ``truth/scenes.json`` says where a scene's thing is."""

_TEST_OFFSET = 10_000


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
        """Film time of every volume, from 2 s (``seg*``, ``test1``) or 0 s on."""
        first = 0.0 if self.is_test and self.number > 1 else TR_S
        n_volumes = round((self.duration_s + AFTER_FILM_S - first) / TR_S) + 1
        return first + TR_S * np.arange(n_volumes)

    def film(self, seed: int) -> list[Shot]:
        """The film; about half the shots of test films are compositions no training film has."""
        film = make_film(
            draw_from(seed, Draw.FILM, self.index), self.duration_s, TR_S, held_out=None if self.is_test else False
        )
        if not self.is_test:
            return film
        rng = draw_from(seed, Draw.CAST, self.index)
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
    kinds = [
        ("seg", settings.train_segments, settings.train_runs),
        ("test", settings.test_segments, settings.test_runs),
    ]
    return [
        Segment(f"{kind}{number}", number, runs, settings.segment_s)
        for kind, count, runs in kinds
        for number in range(1, count + 1)
    ]


def choose_vertices(areas: str, seed: int) -> np.ndarray:
    """Cortical positions the files hold, ascending int32.

    ``cortex``: all. ``visual``: the visual areas, and about as many vertices of random
    other areas as uninformative controls.
    """
    if areas == "cortex":
        return np.arange(atlas.N_CORTEX, dtype=np.int32)
    visual = atlas.visual_areas()
    others = sorted(set(areas_of(np.arange(atlas.N_CORTEX))) - set(AREA_TUNING))
    chosen = [visual]
    for name in draw_from(seed, Draw.CONTROLS).permutation(others):
        if sum(map(len, chosen)) >= 2 * len(visual):
            break
        chosen.append(atlas.area_of(str(name)))
    return np.sort(np.concatenate(chosen)).astype(np.int32)


@lru_cache(maxsize=1)
def _shared_brain(areas: str, seed: int) -> SimulatedSubject:
    return SimulatedSubject.create(draw_from(seed, Draw.SUBJECT), choose_vertices(areas, seed))


@lru_cache(maxsize=16)
def _person(areas: str, seed: int, number: int) -> SimulatedSubject:
    return _shared_brain(areas, seed).draw_person(draw_from(seed, Draw.OWN, number))


def simulated_subject(settings: Simulate, seed: int, number: int) -> SimulatedSubject:
    """The brain of subject ``number``, from 1; a single subject has the shared brain itself."""
    if settings.subjects == 1:
        return _shared_brain(settings.areas, seed)
    return _person(settings.areas, seed, number)


_FILM = (0, 0)


def _missing_files(settings: Simulate, out: Path, segment: Segment) -> dict[tuple[int, int], Path]:
    """What is not there of a segment: recordings by subject and run, and its film."""
    files = {_FILM: out / "stimuli" / f"{segment.name}.mp4"}
    for subject, run in product(range(1, settings.subjects + 1), range(1, segment.runs + 1)):
        folder = out / f"subject{subject}" / "fmri" / segment.name / "cifti"
        files[subject, run] = folder / f"{segment.name}_{run}_Atlas.dtseries.nii"
    return {key: path for key, path in files.items() if not path.is_file()}


def _frames(film: list[Shot], settings: Simulate) -> Iterator[np.ndarray]:
    times = np.arange(round(settings.segment_s * settings.source_fps)) / settings.source_fps
    for start in range(0, len(times), 300):
        yield from render_film(film, times[start : start + 300], settings.size)


def write_segment(
    settings: Simulate, out: Path, seed: int, segment: Segment, done: Callable[[], None] = lambda: None
) -> None:
    """Write a segment's missing film and recordings, calling ``done`` after every file."""
    film, missing = segment.film(seed), _missing_files(settings, out, segment)
    if path := missing.pop(_FILM, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, _frames(film, settings), settings.source_fps, settings.size)
        done()
    if not missing:
        return
    features = film_features(film, settings.size)
    for number, files in groupby(missing.items(), key=lambda item: item[0][0]):
        subject = simulated_subject(settings, seed, number)
        response = subject.respond(features, segment.times_s)
        for (_, run), file in files:
            own = () if number == 1 else (number,)
            rng = draw_from(seed, Draw.RUN, segment.index, run, *own)
            data = subject.record(response, TR_S, rng, settings.noise)
            subcortex = None
            if settings.subcortex:
                shape = (len(data), sum(SUBCORTEX.values()))
                subcortex = 9000 + 120 * rng.standard_normal(shape, dtype=np.float32)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_cortex(file, data, subject.vertex, TR_S, subcortex)
            done()


def simulate(
    settings: Simulate, out: Path, seed: int, progress: Progress | None = None, pool: Executor | None = None
) -> None:
    """Write ``stimuli/``, ``subject1/fmri/…`` and so on, and ``truth/``, in the layout of Wen 2018.

    All subjects see the same films. A single one has the shared brain; each of several varies it.

    Parameters
    ----------
    settings : Simulate
    out : Path
        A new folder, or that of the same simulation, interrupted.
    seed : int
    progress : callable, optional
        Called with (files done, files, {}).
    pool : concurrent.futures.Executor, optional
        What writes the segments, instead of this process.

    Raises
    ------
    DataError
        If the folder holds another simulation, or cannot be written.
    SettingError
        If the length of the segments is no multiple of the TR.
    """
    segments = list_segments(settings)
    with disk_errors(out, "the simulated subjects"):
        _claim(out, {"version": WORLD, "seed": seed, "settings": settings.model_dump(mode="json")})
        n_missing = {segment: len(_missing_files(settings, out, segment)) for segment in segments}
        todo = [segment for segment, count in n_missing.items() if count]
        n_files = sum(1 + settings.subjects * segment.runs for segment in segments)
        tick = Steps(progress, n_files + 1)
        tick.add(n_files - sum(n_missing.values()))
        if pool is None:
            for segment in todo:
                write_segment(settings, out, seed, segment, tick.add)
        else:
            jobs = [pool.submit(write_segment, settings, out, seed, segment) for segment in todo]
            for segment, job in zip(todo, jobs, strict=True):
                job.result()
                tick.add(n_missing[segment])
        _write_truth(settings, out, seed, segments)
        tick.add()


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _claim(out: Path, identity: dict[str, Any]) -> None:
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
    """``truth/``: captions, scenes, and what every vertex of every subject is."""
    films = {segment.name: segment.film(seed) for segment in segments}
    captions = {segment.name: scan_captions(films[segment.name], segment.duration_s) for segment in segments}
    _write_json(out / "truth" / "captions.json", captions)
    scenes = {name: [_describe(shot) for shot in film] for name, film in films.items()}
    _write_json(out / "truth" / "scenes.json", scenes)
    for number in range(1, settings.subjects + 1):
        path = out / "truth" / f"vertices_subject{number}.npz"
        if not path.is_file():
            arrays: dict[str, Any] = describe_vertices(simulated_subject(settings, seed, number), settings.noise)
            with beside(path) as place, place.open("wb") as file:
                np.savez(file, **arrays)


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


def run(context: StageContext) -> None:
    """Stage ``simulate``: a recipe's subjects and the people it pre-trains on."""
    recipe, _, folder, progress = context
    settings = recipe.simulate
    assert settings is not None
    if (settings.train_segments + settings.test_segments) * settings.segment_s <= 1800:
        simulate_pretraining(settings, folder, recipe.seed)
        simulate(settings, folder, recipe.seed, progress)
        return
    with ProcessPoolExecutor(local_workers(), mp_context=get_context("spawn")) as pool:  # the same bytes
        people = pool.submit(simulate_pretraining, settings, folder, recipe.seed)
        simulate(settings, folder, recipe.seed, progress, pool)
        people.result()


def simulate_pretraining(settings: Simulate, out: Path, seed: int, progress: Progress | None = None) -> None:
    """Write simulated people for pre-training to ``out/hcp``: areas V1–V4 at a TR of 0.72 s, as in HCP.

    All watch the same films, none of them the subjects', with tuning, HRFs and noise of their own.
    """
    vertex = np.sort(np.concatenate([atlas.area_of(name) for name in ("V1", "V2", "V3", "V4")]))
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
