"""How alike simulated people are: correlation of their responses to the same films, area by area, as tables.

Run with ``python benchmarks/people.py [--subjects 4] [--films 3] [--apart]``. The brains are all areas that answer to films
and a centimetre around them; an area's vertices are those of the atlas that answer to films in both people. ``--apart``
adds people with no units in common. It takes some minutes of one core and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from mindvideo import atlas
from mindvideo.config import Simulate
from mindvideo.data.voxels import detrend_and_standardise
from mindvideo.simulate.draws import Draw, draw_from
from mindvideo.simulate.film_features import film_features
from mindvideo.simulate.recordings import TR_S, list_segments
from mindvideo.simulate.subject import SimulatedSubject
from mindvideo.simulate.tuning import AREA_TUNING, areas_of


def correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of each column of two (films, T, n) arrays, mean over films; float (n,)."""
    return np.mean([(detrend_and_standardise(a) * detrend_and_standardise(b)).mean(0) for a, b in zip(first, second, strict=True)], axis=0)  # fmt: skip


def tuned_and_around(rings: int = 5) -> np.ndarray:
    """Cortical positions of all tuned areas and of some rings of neighbours."""
    chosen = np.isin(areas_of(np.arange(atlas.N_CORTEX)), list(AREA_TUNING))
    for _ in range(rings):
        chosen |= atlas.adjacency() @ chosen.astype(np.float32) > 0
    return np.flatnonzero(chosen)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--films", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true")
    arguments = parser.parse_args()
    settings = Simulate(train_segments=max(3, arguments.films), segment_s=arguments.seconds)
    segments = list_segments(settings)[: arguments.films]
    features = [film_features(segment.film(arguments.seed)) for segment in segments]
    times = [segment.times_s[1:-4] for segment in segments]
    vertex = tuned_and_around()
    area = areas_of(vertex)
    tuned = np.flatnonzero(np.isin(area, list(AREA_TUNING)))
    area = area[tuned]
    anatomy = atlas.cortical_coordinates("midthickness")

    def respond(subject: SimulatedSubject) -> np.ndarray:
        return np.stack([subject.respond(one, at)[:, tuned] for one, at in zip(features, times, strict=True)])

    r_apart = np.full(len(tuned), np.nan)
    if arguments.apart:
        apart = (SimulatedSubject.create(np.random.default_rng([arguments.seed, 77, i]), vertex) for i in (0, 1))
        r_apart = correlate(*map(respond, apart))
    shared = SimulatedSubject.create(draw_from(arguments.seed, Draw.SUBJECT), vertex)
    clean, runs, reliability, informative = [], [], [], []
    print("| subject | between-run r, median | HRF peak, mean, s | maps off by, mm (rms) | vertices in another area |")
    print("|---|---|---|---|---|")
    for number in range(1, arguments.subjects + 1):
        subject = shared.draw_person(draw_from(arguments.seed, Draw.OWN, number))
        full = [subject.respond(one, at) for one, at in zip(features, times, strict=True)]
        clean.append(np.stack(full)[:, :, tuned])
        runs.append(
            [
                np.stack(
                    [
                        subject.record(one, TR_S, draw_from(arguments.seed, Draw.RUN, segment.index, run, number))[
                            :, tuned
                        ]
                        for one, segment in zip(full, segments, strict=True)
                    ]
                )
                for run in (1, 2)
            ]
        )
        reliability.append(correlate(*runs[-1]))
        informative.append(subject.is_informative[tuned])
        moved = np.linalg.norm(anatomy[subject.source] - anatomy[vertex], axis=1)[tuned]
        print(
            f"| {number} | {np.median(reliability[-1][informative[-1]]):.2f} | "
            f"{subject.hrf_peak_s[subject.is_informative].mean():.2f} | {np.sqrt((moved**2).mean()):.1f} | "
            f"{np.mean(subject.area[tuned] != area):.2f} |",
            flush=True,
        )

    print("\n| area | vertices | drawn apart | noiseless | pairs from, to | mean | from recordings |")
    print("|---|---|---|---|---|---|---|")
    pairs = list(itertools.combinations(range(arguments.subjects), 2))
    noiseless = {pair: correlate(*(clean[i] for i in pair)) for pair in pairs}
    measured = {
        (i, j): np.mean([correlate(a, b) for a, b in itertools.product(runs[i], runs[j])], axis=0) for i, j in pairs
    }
    for name in AREA_TUNING:
        of_pair, means, corrected = [], [], []
        for i, j in pairs:
            chosen = (area == name) & informative[i] & informative[j]
            of_pair.append(np.median(noiseless[i, j][chosen]))
            means.append(noiseless[i, j][chosen].mean())
            ceiling = np.sqrt(reliability[i][chosen].mean() * reliability[j][chosen].mean())
            corrected.append(measured[i, j][chosen].mean() / ceiling)
        print(
            f"| {name} | {(area == name).sum():,} | {np.median(r_apart[area == name]):.2f} | {np.mean(of_pair):.2f} | "
            f"{min(of_pair):.2f}, {max(of_pair):.2f} | {np.mean(means):.2f} | {np.mean(corrected):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
