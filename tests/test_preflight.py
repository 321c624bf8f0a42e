"""What a study is refused for before anything runs: the same sentences by ``check`` and by ``run``, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import transformers
import zarr
from transformers import AutoConfig

from mindvideo.ablation.variants import change_recipe
from mindvideo.config import Recipe, load_recipe
from mindvideo.data.store import Store
from mindvideo.errors import SettingError
from mindvideo.evaluate import n_way_top_k
from mindvideo.models.masked_areas import MaskedAreaModel
from mindvideo.needs import Need, Needs
from mindvideo.preflight import refusals
from mindvideo.stages import STAGES
from mindvideo.voxel_layout import VoxelLayout

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is counted in `test_scale`: it takes seconds and refuses nothing."""
    monkeypatch.setattr(Needs, "of_stages", lambda _: iter([Need("prepare", 0.0, 0.0, "counted elsewhere")]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.size=35"], "data.size to be a multiple of 4 pixels, which one latent of this foundation's VAE covers, "
                           "found 35; give --set data.size=36"),
        (["reconstruct.size=33"], "reconstruct.size to be a multiple of 4 pixels"),
        (["pretrain.enabled=false", "adapt.enabled=false"], "found both disabled; give --set align.start_from=scratch"),
        (["align.batch_size=61"], "align.batch_size of at most 60, the number of training samples, found 61; give --set "
                                  "align.batch_size=60, or fewer"),
        (["pretrain.batch_size=17"], "pretrain.batch_size of at most 16, the number of training samples"),
        (["cotrain.batch_size=90", "data.repeats=separate", "adapt.batch_size=121"], "adapt.batch_size of at most 120"),
        (["baselines=[mindvis]", "baseline.mindvis.batch_size=61"], "baseline.mindvis.batch_size of at most 60"),
        (["data.subject=3", "simulate.subjects=2"], "data.subject of at most 2 (simulate.subjects), found 3; give --set "
                                                    "simulate.subjects=3"),
        (["align.encoder=convolution_encoder:ConvolutionEncoder"], "give --set align.start_from=scratch"),
        (["align.encoder=transformer"], "or module:Class, found 'transformer'"),
        (["align.encoder=paper", "align.encoder_settings={head_rank: 5}"], "found head_rank"),
        (["animate.generator=gan"], "animate.generator to be one of video_unet, found 'gan'"),
        (["evaluate.n_ways=[2,400]"], "distractors are drawn from all but the true clip's 3, found 400"),
        (["evaluate.n_ways=[5,2]", "evaluate.top_k=2"], "expected evaluate.top_k of less than every evaluate.n_ways, found 2 and 2"),
        (["reconstruct.steps=1001"], "from 1 to fewer than 1000 denoising steps, found 1001"),
        (["data.validation_segments=4"], "expected more than 4 training films (the last 4 validate)"),
        (["simulate.segment_s=3"], "simulate.segment_s as a multiple of the TR (2 s), found 3"),
        (["pretrain.validation_share=.99"], "found 4; a batch needs two: add recordings"),
    ],
)  # fmt: skip
def test_check_and_run_refuse_alike(
    settings: list[str],
    said: str,
    cli: Callable[..., tuple[int, str]],
    random_kit: Path,
    tmp_path: Path,
    uncounted: None,
) -> None:
    given = [word for setting in (f"foundation={random_kit}", *settings) for word in ("--set", setting)]
    for command in ("check", "run"):
        code, text = cli(command, TINY, "--out", tmp_path / "run", *given)
        assert code == 1 and said in " ".join(text.split()), text
        sentences = [line for line in text.splitlines() if line.startswith("missing: ")]
        assert len(set(sentences)) == len(sentences), text
    assert not (tmp_path / "run").exists()


def test_as_many_ways_as_there_are_distractors_are_allowed(
    cli: Callable[..., tuple[int, str]], random_kit: Path, tmp_path: Path, uncounted: None
) -> None:
    """N - 1 distractors of the classes outside the true three: with Kinetics' 400 classes 398 ways go, 399 do not."""
    folder = shutil.copytree(random_kit, tmp_path / "kit")
    for part, n_classes in (("image_classifier", 1000), ("video_classifier", 400)):
        config = json.loads((folder / part / "config.json").read_text())
        labels = {str(i): f"class {i}" for i in range(n_classes)}
        config |= {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
        model = getattr(transformers, config["architectures"][0])(AutoConfig.for_model(**config))
        model.save_pretrained(folder / part)
    for ways, count in ((398, 0), (399, 1), (400, 1)):
        settings = [f"foundation={folder}", f"evaluate.n_ways=[2,{ways}]"]
        assert len(refusals(load_recipe(str(TINY), settings))) == count
        probabilities, truth = np.full((1, 400), 1 / 400), np.array([[0, 1, 2]])
        with pytest.raises(SettingError) if count else nullcontext():
            n_way_top_k(probabilities, truth, ways)
    given = [word for setting in settings for word in ("--set", setting)]
    for command in ("check", "run"):
        code, text = cli(command, TINY, "--out", tmp_path / "run", *given)
        assert code == 1 and "n_ways of at most 398, as video_classifier has 400 classes" in " ".join(text.split()), (
            text
        )
    assert not (tmp_path / "run").exists()


def test_the_kit_is_refused_for_films_of_a_real_recording(random_kit: Path, tmp_path: Path) -> None:
    real = ["simulate=null", f"data.raw={tmp_path}", "pretrain.enabled=false", "data.captions=blip"]

    def said(*settings: str, last: str | None = None) -> str:
        recipe = load_recipe(str(TINY), [*real, *settings])
        return " ".join(str(error) for error in refusals(recipe, last=last) if "embedded kit" in str(error))

    assert "--set kit_on_real_films=true" in said() and "one drawn world" in said(last="align")
    for found in (said("kit_on_real_films=true"), said(f"foundation={random_kit}"), said(last="adapt")):
        assert found == ""
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "settings.json").write_text("{}")
    assert said() == ""  # drawn films, written by simulate


def test_a_foundation_is_wanted_where_a_stage_to_run_uses_it(tmp_path: Path) -> None:
    def stages_that_want_it(captions: str) -> list[str]:
        recipe = load_recipe(str(TINY), [f"foundation={tmp_path / 'none'}", f"data.captions={captions}"])
        found = {last: [str(error) for error in refusals(recipe, last=last)] for last in STAGES}
        assert all(
            len(said) <= 1 and "foundation folder" in "".join(said or ["foundation folder"]) for said in found.values()
        )
        return [last for last, said in found.items() if said]

    assert stages_that_want_it("truth") == list(STAGES)[list(STAGES).index("align") :]
    assert stages_that_want_it("blip") == [name for name in STAGES if name != "simulate"]


def test_what_only_the_store_can_tell_is_refused_before_training(tiny_run: Path, tiny_recipe: Recipe) -> None:
    """Of 60 training windows no two of a batch may share a scene: fewer fit than there are windows."""
    store = tiny_run / "prepare" / "store.zarr"
    assert refusals(tiny_recipe, stores=[store]) == []

    def said(**changes: object) -> str:
        align = tiny_recipe.align.model_copy(update=changes)
        return " ".join(
            str(error) for error in refusals(tiny_recipe.model_copy(update={"align": align}), stores=[store])
        )

    n_scenes = len(np.unique(np.concatenate([Store.open(store).scene(f"seg{i}").ravel() for i in (1, 2, 3)])))
    assert n_scenes < 60
    assert "windows without a scene in common" in said(batch_size=n_scenes + 1)
    assert said(batch_size=60, loss="none", token_weight=0) == ""


def test_weights_for_patches_and_for_areas_are_told_apart_before_anything_runs(
    tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path
) -> None:
    weights = tiny_run / "pretrain" / "model"
    recipe = change_recipe(tiny_recipe, {"pretrain.weights": str(weights), "align.encoder": "areas"})
    said = [str(error) for error in refusals(recipe, stores=[tiny_run / "prepare" / "store.zarr"])]
    assert any(
        "expected a MaskedAreaModel for the encoder 'areas'" in line and "align.encoder=paper" in line for line in said
    )
    other = MaskedAreaModel([VoxelLayout(2, None, np.arange(2), np.array([1, 181])).to_config()], embed_dim=4, depth=1,
                            num_heads=1, decoder_embed_dim=4, decoder_depth=1, decoder_num_heads=1)  # fmt: skip
    other.save_pretrained(tmp_path / "areas")
    recipe = change_recipe(tiny_recipe, {"pretrain.weights": str(tmp_path / "areas")})
    said = [str(error) for error in refusals(recipe, stores=[tiny_run / "prepare" / "store.zarr"])]
    assert any("expected a MaskedBrainModel for the encoder 'read_out'" in line for line in said)


def test_areas_want_voxels_whose_place_is_known(tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path) -> None:
    store = shutil.copytree(tiny_run / "prepare" / "store.zarr", tmp_path / "store.zarr")
    recipe = change_recipe(tiny_recipe, {"align.encoder": "areas"})
    assert not [*refusals(recipe, stores=[store])]
    vertex = zarr.open_group(store, mode="r+")["vertex"]
    vertex[:] = -1
    said = [str(error) for error in refusals(recipe, stores=[store])]
    assert any("published arrays that do not say it" in line for line in said), said
