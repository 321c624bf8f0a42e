"""Stores of several people who saw the same films: what is made once, what is each one's own, and who is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_wen import SIZE, TEST, TRAIN, VERTEX, cifti_path, expected_run, make_raw

from mindvideo import preparing
from mindvideo.config import Data, Recipe, parse_recipe
from mindvideo.data.cifti import write_cortex
from mindvideo.data.readers import prepare
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store, open_stores
from mindvideo.data.video import read_film
from mindvideo.errors import DataError
from mindvideo.stages import StageContext


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subject 2 answers as subject 1 does, at the vertex five places further, and in a scale of their own."""
    root = make_raw(tmp_path_factory.mktemp("wen"))
    for name in TRAIN + TEST:
        for path in cifti_path(root, name, 1).parent.iterdir():
            data = read_cortex(path).data
            own = Path(str(path).replace("subject1", "subject2"))
            own.parent.mkdir(parents=True, exist_ok=True)
            write_cortex(own, 3000 + 2 * np.roll(data, 5, axis=1), VERTEX, 2.0)
    return root


def recipe_of(raw: Path, **own: object) -> Recipe:
    data = {"raw": str(raw), "subjects": [1, 2], "captions": str(raw / "captions.csv"), "size": SIZE, "alpha": 0.2}
    return parse_recipe({"data": data | {"wen2018": {"exclude": []} | own}})


@pytest.fixture(scope="module")
def run_dir(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``prepare`` of both, interrupted while it wrote the second person's, and gone on; films decoded once."""
    folder, decoded = tmp_path_factory.mktemp("people"), []

    def stop(done: int, total: int, figures: dict[str, str]) -> None:
        if figures["what"] == "wrote seg3" and (folder / "prepare" / "subject2.zarr").exists():
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mindvideo.data.measuring.read_film", lambda *a: decoded.append(a[0].stem) or read_film(*a))
        with pytest.raises(KeyboardInterrupt):
            preparing.run(StageContext.of(recipe_of(raw), folder, "prepare", stop))
        preparing.run(StageContext.of(recipe_of(raw), folder, "prepare"))
    assert sorted(decoded) == sorted(TRAIN + TEST)
    yield folder


def test_each_store_has_its_own_recordings(raw: Path, run_dir: Path) -> None:
    first, second = open_stores(recipe_of(raw).data, run_dir)
    assert (first.subject, second.subject) == ("subject1", "subject2")
    column = np.searchsorted(VERTEX, second.vertex)
    for name in ("seg2", "test2"):
        runs = np.stack([expected_run(raw, name, run) for run in range(1, 1 + second.n_repeats(name))])
        np.testing.assert_allclose(second.repeats(name), np.roll(runs, 5, axis=2)[:, :, column], atol=1e-4)
    assert json.loads((run_dir / "prepare" / "remarks.json").read_text())["lines"] == []


def test_the_first_store_is_the_one_person_alone_would_have(raw: Path, run_dir: Path, tmp_path: Path) -> None:
    first = open_stores(recipe_of(raw).data, run_dir)[0]
    content = recipe_of(raw).data.model_dump() | {"subjects": None}
    alone = prepare(raw, tmp_path / "store.zarr", Data(**content))
    assert alone.attrs == {**first.attrs, "films": alone.attrs["films"]}
    for name in TRAIN + TEST:
        np.testing.assert_array_equal(alone.fmri(name), first.fmri(name))
    assert alone.shown() == first.shown()


def test_films_are_the_same_files(raw: Path, run_dir: Path) -> None:
    first, second = open_stores(recipe_of(raw).data, run_dir)
    for name in TRAIN + TEST:
        assert second.captions(name) == first.captions(name) and second.frame_captions(name) == first.frame_captions(
            name
        )
        np.testing.assert_array_equal(second.scene(name), first.scene(name))
        for part in (first.path / "frames" / name).rglob("c/*"):
            assert part.is_dir() or part.samefile(second.path / part.relative_to(first.path))
    assert first.shown() == second.shown()


def test_who_saw_other_films_is_refused(raw: Path, run_dir: Path, tmp_path: Path) -> None:
    other = recipe_of(raw, exclude=["subject2:test2"])
    with pytest.raises(DataError, match=r"films that subject1 saw of subject2 too .* 1 that differ .*: test2; leave"):
        preparing.run(StageContext.of(other, tmp_path, "prepare"))
    assert not (tmp_path / "prepare" / "subject2.zarr").exists()


def test_stores_that_were_prepared_apart_are_compared(raw: Path, run_dir: Path, tmp_path: Path) -> None:
    content = recipe_of(raw).data.model_dump(mode="json") | {"raw": str(run_dir / "prepare"), "source": "store"}
    content["wen2018"] = None
    preparing.run(StageContext.of(parse_recipe({"data": content}), tmp_path, "prepare"))
    both = open_stores(recipe_of(raw).data, tmp_path)
    assert [store.subject for store in both] == ["subject1", "subject2"]
    apart = Data(**recipe_of(raw).data.model_dump() | {"subjects": None, "subject": 2, "validation_segments": 2})
    (tmp_path / "apart").mkdir()
    prepare(raw, tmp_path / "apart" / "subject2.zarr", apart)
    (tmp_path / "apart" / "subject1.zarr").symlink_to(run_dir / "prepare" / "subject1.zarr")
    other = parse_recipe({"data": content | {"raw": str(tmp_path / "apart")}})
    with pytest.raises(DataError, match="1 that differ in content, length or split: seg4"):
        preparing.run(StageContext.of(other, tmp_path / "again", "prepare"))
    assert isinstance(both[0], Store)


def test_each_reader_is_told_whom_to_read() -> None:
    data = {"subjects": [3, 12], "raw": "/download", "fmriprep": {"stimuli": "/films"}}
    fmriprep = parse_recipe({"data": data | {"source": "fmriprep", "tr_s": 2.0, "size": 64}})
    assert [one.data.own.participant for one in preparing.each_person(fmriprep)] == [3, 12]
    stores = parse_recipe({"data": data | {"source": "store"}})
    assert [str(one.data.raw) for one in preparing.each_person(stores)] == [
        "/download/subject3.zarr",
        "/download/subject12.zarr",
    ]
    plain = parse_recipe({"data": {"raw": "/download"}})
    assert preparing.each_person(plain) == [plain] and "subjects" not in plain.data.model_dump()
