"""The pages on extending: their code is what they say it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pages import ROOT, blocks
from small_data import SCANS, SIZE, SOURCE_FPS, TR_S, film

from mindvideo.config import Data, Recipe
from mindvideo.data import readers
from mindvideo.data.cifti import write_cortex
from mindvideo.data.video import write_video
from mindvideo.evaluate.score import Score
from mindvideo.models.encoders.custom import CustomEncoder
from mindvideo.sources import READERS, Reader
from mindvideo.stages import StageContext

EXTEND = ROOT / "docs" / "extend"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory that Python imports from; modules of other tests' files of the same names are put aside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    aside = sys.modules.pop("convolution_encoder", None)
    yield tmp_path
    sys.modules.pop("convolution_encoder", None)
    if aside is not None:
        sys.modules["convolution_encoder"] = aside


def _follow(name: str) -> dict:
    found: dict = {}
    for language, file, content in blocks((EXTEND / name).read_text()):
        if file:
            Path(file).write_text(content)
        elif language == "python":
            exec(compile(content, name, "exec"), found)
    return found


def test_score(page: Path) -> None:
    score = _follow("score.md")["score"]
    rng = np.random.default_rng(0)
    made, truth = (rng.integers(0, 256, (4, 3, 6, 5, 3), dtype=np.uint8) for _ in range(2))
    found = score.per_window(SimpleNamespace(clips=made), SimpleNamespace(clips=truth))
    wanted = [
        abs(float(a.astype(float).mean()) - float(b.astype(float).mean())) for a, b in zip(made, truth, strict=True)
    ]
    assert isinstance(score, Score)
    np.testing.assert_allclose(found, wanted)


def test_reader(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _follow("reader.md")
    (page / "films").mkdir()
    (page / "fmri").mkdir()
    rng, vertex, lag = np.random.default_rng(1), np.array([5, 40, 700, 40000]), 2
    data = {}
    for name, other in (("seg1", "film1"), ("seg2", "film2"), ("seg10", "film3"), ("test1", "film4")):
        write_video(page / "films" / f"{name}.mp4", film(other), SOURCE_FPS, SIZE)
        for run in (1, 2):
            data[name, run] = 100 + rng.standard_normal((SCANS + lag + 3, 4))
            write_cortex(page / "fmri" / f"{name}_run-{run}.dtseries.nii", data[name, run], vertex, TR_S)
    monkeypatch.setitem(READERS, "wen2018", Reader("flat", "a flat folder"))
    settings = Data(size=32, selection="all", captions="none", validation_segments=1)
    store = readers.prepare(page, page / "store.zarr", settings)
    assert store.splits == {"train": ["seg1", "seg2"], "validation": ["seg10"], "test": ["test1"]}
    kept = data["seg2", 1][lag : lag + SCANS]
    time = np.arange(SCANS)
    residual = kept - np.stack([np.polyval(np.polyfit(time, column, 4), time) for column in kept.T], axis=1)
    wanted = residual / residual.std(axis=0, ddof=1)
    order = [list(store.vertex).index(each) for each in vertex]
    np.testing.assert_allclose(store.repeats("seg2")[0][:, order], wanted, atol=2e-3)


def test_encoder(page: Path) -> None:
    _follow("encoder.md")
    encoder = CustomEncoder("convolution_encoder:ConvolutionEncoder", 90, 2, 7, 12, settings={"hidden": 3})
    assert encoder(torch.randn(5, 2, 90)).shape == (5, 7, 12)


def test_stage(page: Path, tiny_run: Path) -> None:
    from importlib import import_module

    stage = _follow("stage.md")["stage"]
    folder = page / "count_words"
    folder.mkdir()
    import_module(stage.module).run(StageContext(Recipe(), tiny_run, folder))
    counted = json.loads((folder / "words.json").read_text())
    assert sum(counted.values()) > 100 and "a" in counted
