"""What a person's first minutes in the scanner hold.

Shapes: n scans of a segment, R runs, V voxels.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from mindvideo.data.store import Store


class FirstMinutes(Store):
    """A store whose training recordings end after some minutes, in the films' order.

    The first runs of all films come before any second one; of later runs only whole ones count. There
    is no validation film: whatever is chosen, is chosen on these minutes.
    """

    kept: dict[str, tuple[int, int]]
    """Of each training film that is left, how many of its runs and of its scans."""

    @classmethod
    def of(cls, store: Store, minutes: float | None) -> Self:
        """The first ``minutes`` of ``store``; None: all of it."""
        found = cls(store.path, store._group)
        left = np.inf if minutes is None else int(60 * minutes / store.tr_s + 1e-9)
        names, found.kept = store.segments("train"), {}
        runs = {name: store.n_repeats(name) for name in names}
        for run in range(max(runs.values())):
            for name in (name for name in names if runs[name] > run):
                length = store.n_scans(name)
                taken = int(min(left, length)) if run == 0 else length
                if not taken or taken > left:
                    return found
                found.kept[name] = (run + 1, taken)
                left -= taken
        return found

    @property
    def minutes(self) -> float:
        """Scanner time of what is left."""
        return sum(runs * scans for runs, scans in self.kept.values()) * self.tr_s / 60

    @property
    def keeps_repeats_apart(self) -> bool:
        """Runs are averaged, as far as there are several."""
        return False

    @property
    def splits(self) -> dict[str, list[str]]:
        """Segment names of each split."""
        return {**super().splits, "train": list(self.kept), "validation": []}

    def n_scans(self, segment: str) -> int:
        """Number of scans that are left of a segment."""
        return self.kept[segment][1] if segment in self.kept else super().n_scans(segment)

    def n_repeats(self, segment: str) -> int:
        """Number of runs that are left of a segment."""
        return self.kept[segment][0] if segment in self.kept else super().n_repeats(segment)

    def repeats(self, segment: str) -> np.ndarray:
        """The standardised runs that are left, float32 (R, n, V)."""
        return super().repeats(segment)[: self.n_repeats(segment), : self.n_scans(segment)]

    def fmri(self, segment: str) -> np.ndarray:
        """Average of the runs that are left, float32 (n, V)."""
        return self.repeats(segment).mean(axis=0) if segment in self.kept else super().fmri(segment)

    def scene(self, segment: str) -> np.ndarray:
        """Scene of each frame."""
        return super().scene(segment)[: self.n_scans(segment)]

    def captions(self, segment: str) -> list[str]:
        """One caption a scan."""
        return super().captions(segment)[: self.n_scans(segment)]
