"""Which voxels a model was made for, kept with the model, and a recording read at just those voxels.

Shapes: V voxels, n scans.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.atlas import N_CORTEX
from mindvideo.data.measuring import POLYNOMIAL
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store
from mindvideo.data.voxels import check_run, detrend_and_standardise
from mindvideo.errors import DataError, ModelError

RECORDING_FILE = "recording.json"


@dataclass(frozen=True)
class Recorded:
    """What a model's scans are.

    Attributes
    ----------
    vertex : tuple of int (V,)
        Cortical positions 0…59,411 in the model's order; ``voxel_id`` is their digest.
    tr_s, lag_s : float
        Seconds between scans, and from a film moment to the scan it is paired with.
    subject : str
        Whose they are, if the model is of several people; ``person`` is the index.
    """

    vertex: tuple[int, ...]
    voxel_id: str
    tr_s: float
    lag_s: float
    subject: str = ""
    person: int = 0


def _describe_store(store: Store) -> dict[str, Any]:
    return {name: getattr(store, name) for name in ("voxel_id", "tr_s", "lag_s")} | {"vertex": store.vertex.tolist()}


def write_recorded(stores: Sequence[Store], folder: Path) -> None:
    """Write ``recording.json``: each person's voxel selection and timing."""
    people = [{"subject": store.subject, **_describe_store(store)} for store in stores]
    content = _describe_store(stores[0]) if len(stores) == 1 else {"people": people}
    (folder / RECORDING_FILE).write_text(json.dumps(content) + "\n")


def read_recorded(model: Path, store: Path | None = None) -> Recorded:
    """What a model's scans are, from its folder, or from the store of its run.

    The store is needed where the model was saved without ``recording.json``, or is of several
    people. ModelError if neither says which voxels the model was made for, or whose.
    """
    path = model / RECORDING_FILE
    if path.is_file():
        try:
            content = json.loads(path.read_text())
            person, entry = _whose(content["people"], model, store) if "people" in content else (0, content)
            found = _read_entry(entry, person)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"expected vertex, tr_s and lag_s in {path}, found other content ({error})") from None
        return found
    if store is None or not store.is_dir():
        raise ModelError(
            f"expected {RECORDING_FILE} in {model}, found none, so it is not known which voxels the model was made "
            "for; give the run folder it came from, or run reconstruct again"
        )
    return _read_entry(_describe_store(Store.open(store)))


def _read_entry(content: dict[str, Any], person: int = 0) -> Recorded:
    vertex = tuple(int(position) for position in content["vertex"])
    timing = content["voxel_id"], content["tr_s"], content["lag_s"]
    return Recorded(vertex, *timing, content.get("subject", ""), person)


def _whose(people: list[dict[str, Any]], model: Path, store: Path | None) -> tuple[int, dict[str, Any]]:
    """Number and entry of the person whose store it is."""
    names = [str(entry["subject"]) for entry in people]
    if store is None or not store.is_dir():
        raise ModelError(
            f"expected the store of one of the {len(names)} people that the model in {model} knows ({', '.join(names)}), "
            "found none; give it (--store RUN/prepare/subjectN.zarr)"
        )
    if (subject := Store.open(store).subject) not in names:
        raise ModelError(f"expected a store of {', '.join(names)}, whom the model in {model} knows, found {subject}")
    return names.index(subject), people[names.index(subject)]


def read_scans(
    paths: Sequence[Path], recorded: Recorded, first_volume: int = 0, n_scans: int | None = None
) -> np.ndarray:
    """Scans of a recording at a model's voxels, standardised (docs/method.md, Recordings).

    Parameters
    ----------
    paths : sequence of Path
        ``.dtseries.nii`` files; several recordings of the same film are averaged.
    recorded : Recorded
    first_volume : int
        Volumes left out at the start.
    n_scans : int, optional
        Volumes kept; all by default.

    Returns
    -------
    ndarray, float32 (n, V)
    """
    vertex = np.array(recorded.vertex)
    if vertex.min() < 0 or vertex.max() >= N_CORTEX:
        raise DataError(
            "expected a model whose voxels lie on the cortex, found one trained on voxels without positions"
        )
    runs = []
    for path in paths:
        recording = read_cortex(path)
        if abs(recording.tr_s - recorded.tr_s) > 1e-3:
            raise DataError(f"expected a TR of {recorded.tr_s:g} s in {path}, found {recording.tr_s:g} s")
        column = np.minimum(np.searchsorted(recording.vertex, vertex), len(recording.vertex) - 1)
        lost = int((recording.vertex[column] != vertex).sum())
        if lost:
            raise DataError(f"expected all {len(vertex)} voxels of the model in {path}, found {lost} of them missing")
        last = len(recording.data) if n_scans is None else first_volume + n_scans
        if not 0 <= first_volume < last <= len(recording.data):
            raise DataError(
                f"expected volumes {first_volume} to {last - 1} in {path}, found {len(recording.data)} volumes; "
                "lower --first-volume or --scans"
            )
        kept = recording.data[first_volume:last, column]
        check_run(kept, path, vertex)
        try:
            runs.append(detrend_and_standardise(kept, POLYNOMIAL))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    if len({len(run) for run in runs}) > 1:
        raise DataError(f"expected recordings of one length, found {[len(run) for run in runs]} scans; give --scans")
    return np.mean(runs, axis=0)
