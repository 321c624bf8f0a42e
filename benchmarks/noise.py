"""How like a scanner's the simulated noise is: figures of a whole simulated cortex beside published ones, as a table.

Run with ``python benchmarks/noise.py [--noise 1.0]``: eighteen films of eight minutes, twice each, as in Wen 2018. It takes
some minutes of one core and 3 GB of memory.
"""

from __future__ import annotations

import argparse

import numpy as np

from mindvideo.config import Simulate
from mindvideo.data.voxels import (
    detrend_and_standardise,
    fisher_z,
    repeat_correlation,
    reproducibility_t_test,
    select_voxels,
)
from mindvideo.simulate.film_features import film_features
from mindvideo.simulate.recordings import TR_S, choose_vertices, list_segments
from mindvideo.simulate.subject import SimulatedSubject

N_SCANS, N_COMPONENTS = 1440, 20


def leading_share(residual: np.ndarray, components: int) -> float:
    """Share of the variance of ``residual`` (T, V) in its first principal components."""
    centred = residual - residual.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centred.astype(np.float64) @ centred.T.astype(np.float64))
    return float(eigenvalues[-components:].sum() / eigenvalues.sum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = Simulate(train_segments=18, test_segments=1, segment_s=480, areas="cortex")
    subject = SimulatedSubject.create(
        np.random.default_rng([arguments.seed, 1]), choose_vertices("cortex", arguments.seed)
    )
    correlations: list[np.ndarray] = []
    residuals: list[np.ndarray] = []
    for segment in (segment for segment in list_segments(settings) if not segment.is_test):
        response = subject.respond(film_features(segment.film(arguments.seed), settings.size), segment.times_s)
        runs = []
        for run in (1, 2):
            rng = np.random.default_rng([arguments.seed, 2, segment.index, run])
            runs.append(detrend_and_standardise(subject.record(response, TR_S, rng, arguments.noise)))
        correlations.append(repeat_correlation(*runs))
        if sum(map(len, residuals)) < N_SCANS:
            residuals.append((runs[0] - runs[1])[: N_SCANS // 6] / np.float32(np.sqrt(2)))
        print(f"{segment.name}: median r {np.median(correlations[-1][subject.is_informative]):.3f}", flush=True)
    r, tuned = np.mean(correlations, axis=0), subject.is_informative
    p = reproducibility_t_test(fisher_z(np.stack(correlations)))
    passed = select_voxels(p, "bonferroni", alpha=0.01)
    share = leading_share(np.concatenate(residuals), N_COMPONENTS)
    low, middle, high = np.quantile(r[tuned], [0.25, 0.5, 0.75])
    rows = [
        ("between-run r, vertices that answer to films", f"median {middle:.2f} (quartiles {low:.2f}, {high:.2f})", ".2–.35"),
        ("between-run r, other vertices", f"median {np.median(r[~tuned]):.3f}", "0"),
        (f"first {N_COMPONENTS} components of the residual, {N_SCANS} scans", f"{share:.2f}", "≥ .45"),
        (f"vertices of {len(r):,} that pass the paper's test", f"{len(passed):,}", "about 12,000 (7,500 for subject 3)"),
        ("of these, vertices that do not answer to films", f"{int((~tuned[passed]).sum()):,}", "–"),
    ]  # fmt: skip
    print(f"\n| figure, noise {arguments.noise:g} | simulated | published |\n|---|---|---|")
    print("\n".join(f"| {name} | {found} | {published} |" for name, found, published in rows))


if __name__ == "__main__":
    main()
