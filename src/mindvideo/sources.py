"""The table of data sets that can be prepared, by ``data.source``."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Reader(NamedTuple):
    """Where a reader is, and what it reads."""

    module: str
    summary: str


READERS = {
    "wen2018": Reader(
        "mindvideo.data.readers.wen2018", "Wen 2018 as downloaded (stimuli/ and subjectN/), or simulated"
    ),
    "fmriprep": Reader("mindvideo.data.readers.fmriprep", "fMRIPrep's CIFTI outputs (fsLR, 91k) with BIDS events"),
    "published": Reader("mindvideo.data.readers.published", "MinD-Video's arrays or NeuroClips' tensors"),
    "parcels": Reader("mindvideo.data.readers.parcels", "arrays people x time x parcels with BIDS events"),
    "store": Reader("mindvideo.data.readers.prepared", "a store that was prepared before"),
}


def load_reader(source: str) -> ModuleType:
    """The module that reads a source; it is imported when it is first asked for."""
    return import_module(READERS[source].module)
