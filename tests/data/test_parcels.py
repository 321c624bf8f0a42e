"""Arrays people x time x parcels with events: scans against plain NumPy, a study of two people, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mindvideo import atlas
from mindvideo.config import Data, Recipe, load_recipe
from mindvideo.data.readers import discover, prepare
from mindvideo.data.store import Store, open_stores
from mindvideo.data.video import write_video
from mindvideo.errors import DataError, SettingError
from mindvideo.explain import attention, maps
from mindvideo.models.area_maps import AreaMaps
from mindvideo.models.encoders import load_encoder
from mindvideo.newcomer.own_maps import encoder_of_newcomer
from mindvideo.report.brain import list_brain
from mindvideo.sizing import StudySizes
from mindvideo.stages import StageContext
from mindvideo.study import Study
from mindvideo.voxel_layout import VoxelLayout

Cli = Callable[..., tuple[int, str]]
TR, LAG, FPS, SIZE, PEOPLE = 1.5, 3.0, 2, 32, 3
SCANS = {"a": 7, "b": 9, "c": 8, "t": 6}
RUNS = {"run1.h5": (41, [("a", 1.5), ("b", 15.75), ("c", 34.5)]), "run2.npy": (26, [("t", 3.0), ("t", 18.0)])}
NAMES = (*(f"LH_Vis_{number}" for number in range(1, 6)), *(f"RH_Vis_{number}" for number in range(1, 4)), "LH_Aud",
         "RH_Aud", "RH_Lim")  # fmt: skip
MISSING = 9
"""RH_Aud, which subject 2 has no values of."""


def recorded(run: str) -> np.ndarray:
    """People x time x parcels, float64."""
    rng = np.random.default_rng([len(run), 7])
    n_volumes, _ = RUNS[run]
    values = (
        300 + 20 * rng.standard_normal((PEOPLE, 1, len(NAMES))) + rng.standard_normal((PEOPLE, n_volumes, len(NAMES)))
    )
    values += np.linspace(0, 9, n_volumes)[:, None]
    values[1, :, MISSING] = np.nan
    return values


def write_array(path: Path, values: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
        return
    with h5py.File(path, "w") as file:
        file["fmri/bold"] = values


def write_events(raw: Path, run: str, rows: list[tuple[str, float]]) -> None:
    lines = ["onset\tduration\tstim_file", *(f"{onset}\t{SCANS[name] * TR}\t{name}.mp4" for name, onset in rows)]
    (raw / f"{Path(run).stem}_events.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parcels")
    (root / "films").mkdir()
    (root / "raw").mkdir()
    for number, (name, scans) in enumerate(SCANS.items()):
        frames = np.random.default_rng(number).integers(
            0, 255, (round(scans * TR * 10) + 2, SIZE, SIZE, 3), dtype=np.uint8
        )
        write_video(root / "films" / f"{name}.mp4", frames, 10, SIZE)
    for run, (_, shown) in RUNS.items():
        write_array(root / "raw" / run, recorded(run))
        write_events(root / "raw", run, shown)
    (root / "labels.tsv").write_text("index\tname\n" + "".join(f"{n}\t{name}\n" for n, name in enumerate(NAMES, 1)))
    rows = [f"{name},{scan * TR},a {name} of {scan % 3}" for name, scans in SCANS.items() for scan in range(scans)]
    (root / "captions.csv").write_text("\n".join(["segment,time_s,caption", *rows]))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    own = {"labels": str(root / "labels.tsv"), "stimuli": str(root / "films"), "test": ["t"], "array_tr_s": TR}
    own |= {"high_pass_hz": None} | changes.pop("parcels", {})
    base = {
        "source": "parcels",
        "raw": str(root / "raw"),
        "captions": str(root / "captions.csv"),
        "size": SIZE,
        "fps": FPS,
    }
    return base | {"tr_s": None, "lag_s": LAG, "selection": "all", "parcels": own} | changes


def expected(run: str, subject: int, film: str, onset: float) -> np.ndarray:
    """A line out of every parcel, divided by its standard deviation; scans between two volumes are on the line between."""
    values = recorded(run)[subject - 1]
    time = np.arange(len(values))
    rest = np.stack([series - np.polyval(np.polyfit(time, series, 1), time) for series in values.T], axis=1)
    rest /= rest.std(axis=0, ddof=1)
    place = (onset + LAG) / TR + np.arange(SCANS[film])
    return np.stack([np.interp(place, time, series) for series in rest.T], axis=1)


def test_scans_of_one_person(made: Path, cli: Cli, tmp_path: Path) -> None:
    options = ["--labels", made / "labels.tsv", "--stimuli", made / "films", "--test", "t", "--array-tr-s", TR, "--subject", 3,
               "--high-pass-hz", "none", "--lag-s", LAG, "--fps", FPS, "--size", SIZE, "--captions", made / "captions.csv"]  # fmt: skip
    code, text = cli("prepare", "parcels", made / "raw", "--out", tmp_path / "store.zarr", *options)
    assert code == 0, text
    store = Store.open(tmp_path / "store.zarr")
    assert store.subject == "subject3" and store.tr_s == TR and store.parcels == NAMES and not store.has_positions
    assert store.splits == {"train": ["a", "b"], "validation": ["c"], "test": ["t"]}
    assert store.area.tolist() == list(range(1, 12)) and (store.vertex < 0).all()
    for film, run in (("a", "run1.h5"), ("b", "run1.h5"), ("c", "run1.h5"), ("t", "run2.npy")):
        shown = [expected(run, 3, name, onset) for name, onset in RUNS[run][1] if name == film]
        np.testing.assert_allclose(store.repeats(film), np.stack(shown), atol=2e-5)
    assert {"labels.tsv", "run1.h5", "run2_events.tsv"} <= {Path(name).name for name in store.attrs["sources"]}
    assert store.summary()["voxels_per_area"]["LH_Vis_4"] == 1 and store.summary()["voxels_right"] == 0
    code, text = cli("inspect", tmp_path / "store.zarr", "--out", tmp_path / "page")
    assert code == 0 and "RH_Lim" in text and "11 (parcels)" in text, text


def test_some_parcels_by_name(made: Path, tmp_path: Path) -> None:
    data = Data(**settings(made, areas="LH_Vis_?, RH_Lim", subject=2))
    store = prepare(made / "raw", tmp_path / "store.zarr", data)
    assert [NAMES[area - 1] for area in store.area] == [*NAMES[:5], "RH_Lim"]
    np.testing.assert_allclose(store.fmri("b"), expected("run1.h5", 2, "b", 15.75)[:, [0, 1, 2, 3, 4, 10]], atol=2e-5)
    with pytest.raises(SettingError, match=r"'cortex' for all parcels.*found 'V1', which none of LH_Vis_1, … RH_Lim"):
        prepare(made / "raw", tmp_path / "other.zarr", Data(**settings(made, areas="V1")))


@pytest.fixture(scope="module")
def run_dir(made: Path, random_kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, of whom the second lacks a parcel, up to ``align`` and the maps."""
    folder = tmp_path_factory.mktemp("study")
    common = "{precision: fp32, batch_size: 3, steps: 3, lr: 1.0e-3}"
    lines = [f"foundation={random_kit}", "kit_on_real_films=true", "data.subjects=[1, 2]", f"adapt={common}",
             "encoder={embed_dim: 12, depth: 1, num_heads: 3, decoder_embed_dim: 8, decoder_depth: 1, decoder_num_heads: 2}",
             "align={precision: fp32, batch_size: 3, steps: 3, token_weight: 1.0, teacher_weight: 0.5, augmentation: fixed, "
             "synonyms: listed, encoder_settings: {head_rank: 4}, val_every: 3}"]  # fmt: skip
    for name, value in settings(made).items():
        lines.append(f"data.{name}={json.dumps(value)}")
    recipe = load_recipe("parcels", lines)
    (folder / "lines.json").write_text(json.dumps(lines))
    assert Study(recipe, folder / "run").run(say=lambda line: None, until="align")[-2:] == ["adapt", "align"]
    maps.run(StageContext.of(recipe, folder / "run", "explain"))
    return folder / "run"


def recipe_of(run_dir: Path) -> Recipe:
    return load_recipe("parcels", json.loads((run_dir.parent / "lines.json").read_text()))


def test_who_lacks_a_parcel_has_a_learned_token_for_it(run_dir: Path) -> None:
    first, second = open_stores(recipe_of(run_dir).data, run_dir)
    assert first.n_voxels == 11 and second.n_voxels == 10 and "RH_Aud" not in [NAMES[area - 1] for area in second.area]
    assert second.remarks == ["parcels left out, which have no signal in some run (1): RH_Aud"]
    assert set(second.vertex) < set(first.vertex) and first.shown() == second.shown()
    encoder = load_encoder(run_dir / "align" / "model").eval()
    embed = encoder.patch_embed
    assert embed.is_present.tolist() == [[True] * 11, [number != MISSING for number in range(11)]]
    tokens = embed.encode(torch.zeros(2, 11), torch.tensor([0, 1])) - embed.positions
    torch.testing.assert_close(tokens[1, MISSING], embed.missing[MISSING])
    assert not torch.allclose(tokens[0, MISSING], embed.missing[MISSING])


def test_check_counts_the_voxels_that_each_has(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_of(run_dir)
    assert [layout.num_voxels for layout in StudySizes.of(recipe, run_dir).layouts] == [11, 10]
    (known,) = set(map(str, StudySizes.of(recipe, tmp_path).layouts))  # before anything is prepared, by the labels
    assert "num_voxels=11" in known


def test_attention_and_occlusion_by_the_names_of_parcels(run_dir: Path) -> None:
    for number, names in ((1, list(NAMES)), (2, [name for name in NAMES if name != "RH_Aud"])):
        folder = run_dir / "explain" / f"subject{number}"
        occluded = json.loads((folder / "occlusion.json").read_text())
        assert list(occluded["areas"]) == names and all(row["n_voxels"] == 1 for row in occluded["areas"].values())
        for layers in json.loads((folder / "attention.json").read_text()).values():
            for shares in layers.values():
                assert list(shares) == names and sum(shares.values()) == pytest.approx(1)
        about = json.loads((folder / "parcels.json").read_text())
        assert about["note"].startswith(f"no place on the surface is known of {len(names)} of {len(names)} parcels")
        assert about["note"].endswith("so there is no map")
        assert not [path for path in folder.iterdir() if path.suffix in (".png", ".html", ".npz")]
    found = {path.stem: json.loads(path.read_text()) for path in (run_dir / "explain" / "subject1").glob("*.json")}
    groups = {each["title"]: each for each in list_brain(SimpleNamespace(explain=found))}
    assert "when a parcel is silenced" in groups["Occlusion by parcel"]["text"]
    group = groups["Attention after align"]
    assert "each parcel receives" in group["text"] and group["note"] and "LH_Vis_2" in group["panels"][0]["plot"]


def test_parcels_that_are_known_areas_have_a_place() -> None:
    found = attention.map_parcels(np.array([5.0, 7.0, 9.0]), ["L_V1_ROI", "LH_Vis_1", "R_MT"])
    left, right = atlas.area_of("L_V1"), atlas.area_of("R_MT")
    assert (found[left] == 5).all() and (found[right] == 9).all()
    assert np.isfinite(found).sum() == len(left) + len(right)


def test_people_of_two_atlases_are_refused() -> None:
    layouts = [VoxelLayout(1, None, np.array([-4]), np.array([2]), names) for names in (("x", "y"), ("x", "z"))]
    with pytest.raises(SettingError, match="parcels of one atlas of all people"):
        AreaMaps(layouts, 8)


def test_a_new_persons_parcels_start_as_the_mean_of_the_others(run_dir: Path) -> None:
    shared = load_encoder(run_dir / "align" / "model")
    layout = open_stores(recipe_of(run_dir).data, run_dir)[0].layout
    found, others = encoder_of_newcomer(shared, layout).patch_embed, shared.patch_embed
    for area in range(11):
        theirs = [others.weight[0][area]] + ([others.weight[1][area - (area > MISSING)]] if area != MISSING else [])
        torch.testing.assert_close(found.weight[0][area], torch.stack(theirs).mean(0))
    torch.testing.assert_close(found.positions, others.positions)


def refused(root: Path, *words: str, error: type[Exception] = DataError, **changes: Any) -> None:
    data = Data(**settings(root, **changes))
    with pytest.raises(error) as caught:
        prepare(root / "raw", root / "store.zarr", data)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value) and not (root / "store.zarr").exists()


def test_what_does_not_fit_is_refused_in_a_sentence(root: Path) -> None:
    raw, values = root / "raw", recorded("run2.npy")
    refused(root, "subject 4", "found 3 people", "1 to 3", subject=4)
    refused(
        root,
        "seconds between the arrays' time points",
        "--array-tr-s",
        error=SettingError,
        parcels={"array_tr_s": None},
    )
    np.save(raw / "run2.npy", values.transpose(0, 2, 1))
    refused(root, "people x time x parcels with 11 parcels", "(3, 11, 26)", "axis 1 has as many")
    np.save(raw / "run2.npy", values[..., :8])
    refused(root, "with 11 parcels, as", "labels.tsv names", "(3, 26, 8)", "--labels")
    np.save(raw / "run2.npy", values[0])
    refused(root, "people x time x parcels", "shape (26, 11)")
    np.save(raw / "run2.npy", values.astype(str))
    refused(root, "expected numbers", "<U")
    damaged = values.copy()
    damaged[0, 4, [2, 6]] = np.nan
    np.save(raw / "run2.npy", damaged)
    refused(root, "subject 1", "run2.npy", "2 of 11 parcels (e.g. LH_Vis_3)")
    damaged = values.copy()
    damaged[0] = np.nan
    np.save(raw / "run2.npy", damaged)
    refused(root, "values of subject 1", "found none but NaN", "data.subjects")
    damaged[0, :, :9] = values[0, :, :9]
    np.save(raw / "run2.npy", damaged)
    refused(root, "signal at nearly every parcel", "2 of 11", "run2.npy")
    np.save(raw / "run2.npy", values)
    write_events(raw, "run2", [("t", 30.0)])
    refused(root, "last scan of t.mp4", "run2.npy", "to 37.5", "--trim-end")
    write_events(raw, "run2", [("t", 60.0)])
    refused(root, "scans of t.mp4", "to 37.5", "exclude run2:t")
    (raw / "run2_events.tsv").unlink()
    refused(root, "run2_events.tsv", "add it, or exclude run2")
    write_events(raw, "run2", [("t", 3.0)])
    (root / "labels.tsv").write_text("\n".join([*NAMES[:-1], NAMES[0]]))
    refused(root, "name of its own for every parcel", "LH_Vis_1 twice")
    (root / "labels.tsv").write_text("id\tregion\n1\tx\n")
    refused(root, "column name or label", "id, region")
    refused(root, "names of the parcels, found none", parcels={"labels": None})
    (root / "labels.tsv").write_text("\n".join(NAMES) + "\n\n")  # one a line
    with h5py.File(raw / "run1.h5", "a") as file:
        file["other"] = np.zeros(3)
    refused(root, "one data set", "fmri/bold, other", "--dataset")
    assert len(discover(raw, Data(**settings(root, parcels={"dataset": "fmri/bold"}))).segments) == 4
    (raw / "run1.h5").write_bytes(b"no h5")
    refused(root, "intact HDF5 file", "run1.h5")
    np.save(raw / "run1.npy", recorded("run1.h5"))
    refused(root, "one array a run", "run1.h5, run1.npy")
    (raw / "run1.h5").unlink()
    np.save(raw / "run3.npy", recorded("run1.h5")[..., ::-1] * 2)
    shutil.copy(raw / "run1_events.tsv", raw / "run3_events.tsv")
    shutil.copy(raw / "run1.npy", raw / "run3.npy")
    refused(root, "different recordings", "run1.npy", "run3.npy")
