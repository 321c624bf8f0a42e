"""Draw docs/images/calibration.png: are P-values uniform for reconstructions that know nothing of the brain?

Run with ``python docs/make_calibration.py``. No recording and no network is needed: clips are points in a feature space.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel

from mindvideo.evaluate.retrieval import video_similarity
from mindvideo.evaluate.statistics import block_pairing_p, block_permutation_p

N_WINDOWS, BLOCK = 240, 10
"""One 8-minute test film of 2-second windows, in blocks of 20 s."""
WIDTH = 12


def draw_film(rng: np.random.Generator, n: int, is_dependent: bool) -> np.ndarray:
    """Features (n, WIDTH) of consecutive windows; scenes last 3 to 8 windows where they depend on one another."""
    if not is_dependent:
        return rng.normal(size=(n, WIDTH))
    scene = np.repeat(np.arange(n), rng.integers(3, 9, size=n))[:n]
    return rng.normal(size=(n, WIDTH))[scene] + 0.2 * rng.normal(size=(n, WIDTH))


def draw_p_values(
    rng: np.random.Generator, is_dependent: bool, block: int = BLOCK, permutations: int = 399
) -> dict[str, float]:
    """P-values of one simulated test set whose reconstructions are training clips, so that the null hypothesis holds.

    Reconstruction and control are stretches of two training films, the score of a window is its cosine with the truth.
    """
    truth, reconstruction, control = (draw_film(rng, N_WINDOWS, is_dependent) for _ in range(3))
    pairs = video_similarity(reconstruction, truth)
    own, other = np.diag(pairs), np.diag(video_similarity(control, truth))
    number = np.arange(N_WINDOWS) // block
    return {
        "t-test over windows": float(ttest_rel(own, other, alternative="greater").pvalue),
        "block sign flips": block_permutation_p(own - other, number, permutations, rng),
        "block pairing": block_pairing_p(pairs, number, permutations, rng),
    }


def false_positive_rates(sets: int, is_dependent: bool, seed: int, block: int = BLOCK) -> dict[str, float]:
    """Share of P ≤ .05 over simulated sets, by test."""
    rng = np.random.default_rng(seed)
    rows = [draw_p_values(rng, is_dependent, block) for _ in range(sets)]
    return {name: float(np.mean([row[name] <= 0.05 for row in rows])) for name in rows[0]}


def main(sets: int = 600) -> None:
    """Draw P-values of ``sets`` simulated test sets and write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    colours = {"t-test over windows": "#c0392b", "block sign flips": "#1f618d", "block pairing": "#7d8c1e"}
    for axis, is_dependent in zip(axes[:2], (False, True), strict=True):
        rng = np.random.default_rng(int(is_dependent))
        rows = [draw_p_values(rng, is_dependent) for _ in range(sets)]
        axis.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
        for name, colour in colours.items():
            p = np.sort([row[name] for row in rows])
            rate = np.mean(p <= 0.05)
            print(f"{'dependent' if is_dependent else 'independent'} windows, {name}: {rate:.3f} of {sets} at .05")
            label = f"{name} ({rate:.3f})"
            axis.step(np.append(0, p), np.arange(sets + 1) / sets, where="post", color=colour, label=label)
        axis.set(xlabel="P", title=f"{'neighbouring windows alike' if is_dependent else 'independent windows'}",
                 xlim=(0, 1), ylim=(0, 1))  # fmt: skip
        axis.legend(title="share at P ≤ .05", fontsize=7, title_fontsize=7, loc="lower right")
    axes[0].set_ylabel("share of sets with a smaller P")
    lengths = (1, 2, 5, 10, 20)
    rates = [false_positive_rates(sets // 2, True, 2 + length, length) for length in lengths]
    axes[2].axhspan(0.02, 0.08, color="0.9")
    axes[2].axhline(0.05, color="0.6", lw=1, ls="--")
    for name in ("block sign flips", "block pairing"):
        values = [rate[name] for rate in rates]
        print(name, "by windows a block:", dict(zip(lengths, values, strict=True)))
        axes[2].plot(lengths, values, "o-", color=colours[name], label=name)
    axes[2].set(xscale="log", xticks=lengths, xticklabels=[str(length) for length in lengths], ylim=(0, None),
                xlabel="windows a block", ylabel="false positives at .05", title="alike: how long a block must be")  # fmt: skip
    axes[2].minorticks_off()
    axes[2].legend(fontsize=7)
    figure.savefig(Path(__file__).parent / "images" / "calibration.png", dpi=110)


if __name__ == "__main__":
    main()
