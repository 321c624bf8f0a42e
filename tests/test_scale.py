"""Other parts in the place of ours, through the whole run; films of a recording; what `check` foretells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from kit.parts import TEST, build_kit
from mindvideo import MindVideoPipeline
from mindvideo.ablation.variants import change_recipe
from mindvideo.atlas import N_CORTEX, area_of
from mindvideo.config import Recipe, load_recipe, save_recipe
from mindvideo.data.store import Store
from mindvideo.errors import ModelError, SettingError
from mindvideo.explain.occlusion import MEANING
from mindvideo.models.encoders import CustomEncoder, import_encoder, load_encoder, load_masked_brain
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators import GENERATORS
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.needs import Needs, _advice, check_recipe
from mindvideo.preflight import refusals
from mindvideo.sizing import Network, Networks, StudySizes
from mindvideo.stages import STAGES, StageContext
from mindvideo.study import Study
from mindvideo.train import adapt, pretrain
from mindvideo.voxel_layout import VoxelLayout

Cli = Callable[..., tuple[int, str]]
OWN = "convolution_encoder:ConvolutionEncoder"


@pytest.fixture(scope="session")
def sd2_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foundation like Stable Diffusion 2: heads level by level, linear projections, another context, v-prediction."""
    sizes = replace(TEST, width=48, length=45)
    folder = build_kit(tmp_path_factory.mktemp("sd2") / "kit", sizes, seed=1)
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 24, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=48,
        attention_head_dim=(2, 3, 4), use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    return folder


class QuietGenerator(VideoUNet):
    """Another generator: one that only its temporal attention learns in."""

    trained_parts = ("attn_temp",)


@pytest.fixture(scope="module")
def swapped_run(
    tiny_run: Path, tiny_recipe: Recipe, sd2_kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The tiny study from align on with another generator, another foundation and another encoder."""
    folder = tmp_path_factory.mktemp("swapped")
    run_dir = folder / "run"
    run_dir.mkdir()
    for stage in ("simulate", "prepare", "pretrain", "adapt"):
        shutil.copytree(tiny_run / stage, run_dir / stage)
    save_recipe(tiny_recipe, folder / "recipe.yaml")
    settings = [f"foundation={sd2_kit}", f"align.encoder={OWN}", "align.start_from=scratch"]
    settings += ["align.encoder_settings={hidden: 5}", "reconstruct.size=24", "reconstruct.num_frames=4"]
    settings += ["reconstruct.max_windows=8", "explain.max_windows=4", "animate.generator=quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GENERATORS, "quiet", QuietGenerator)
        Study(load_recipe(str(folder / "recipe.yaml"), settings), run_dir).run(say=lambda line: None)
        yield run_dir


def test_another_generator_and_another_encoder_run_through(swapped_run: Path, sd2_kit: Path) -> None:
    assert all((swapped_run / stage / "done.json").is_file() for stage in STAGES if stage != "distill")
    pipe = MindVideoPipeline.from_pretrained(swapped_run / "model")
    assert isinstance(pipe.fmri_encoder, CustomEncoder) and pipe.fmri_encoder.config.encoder == OWN
    assert pipe.fmri_encoder.body.body[0].out_channels == 5
    assert pipe.unet.config.use_linear_projection and tuple(pipe.unet.config.attention_head_dim) == (2, 3, 4)
    assert pipe.condition_shape == (45, 48)
    assert isinstance(pipe.unet, QuietGenerator)
    begun = Foundation(sd2_kit).unet.state_dict()
    changed = {
        name for name, weight in pipe.unet.state_dict().items() if not torch.equal(weight, begun.get(name, weight * 0))
    }
    assert changed and all("attn_temp." in name or "norm_temp." in name for name in changed)
    trained = load_encoder(swapped_run / "cotrain" / "fmri_encoder")
    started = load_encoder(swapped_run / "align" / "model")
    assert not torch.equal(trained.body.body[0].weight, started.body.body[0].weight)
    found = json.loads((swapped_run / "explain" / "occlusion.json").read_text())
    assert sum(area["n_voxels"] for area in found["areas"].values()) == 400
    assert found["measures"] == MEANING  # the words of the report's panels
    assert not (swapped_run / "explain" / "attention.json").exists()


def test_stage_reconstructs_at_the_asked_size_and_count(swapped_run: Path) -> None:
    import zarr

    group = zarr.open_group(swapped_run / "reconstruct" / "clips.zarr", mode="r")
    assert {group[name].shape[1:] for name in group.attrs["names"]} == {(4, 24, 24, 3)}
    store = Store.open(swapped_run / "prepare" / "store.zarr")
    first = json.loads((swapped_run / "reconstruct" / "windows.json").read_text())[0]
    whole = store.frames(first["segment"])[first["scan"]][0].astype(float)
    assert np.abs(group["truth"][0, 0].mean(axis=(0, 1)) - whole.mean(axis=(0, 1))).max() < 2


def test_an_encoder_of_areas_runs_through(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for stage in ("simulate", "prepare", "animate", "features"):
        shutil.copytree(tiny_run / stage, run_dir / stage)
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    settings = ["align.encoder=areas", "align.encoder_settings={head_rank: 9}", "reconstruct.max_windows=8"]
    settings += ["explain.max_windows=4", "align.token_weight=1.0"]
    settings += ["baselines=[mindvis]", "baseline.mindvis={steps: 2, batch_size: 4, token_weight: 1.0}"]
    Study(load_recipe(str(tmp_path / "recipe.yaml"), settings), run_dir).run(say=lambda line: None)
    store = Store.open(run_dir / "prepare" / "store.zarr")
    adapted = load_masked_brain(run_dir / "adapt" / "model")
    encoder = load_encoder(run_dir / "cotrain" / "fmri_encoder")
    assert adapted.num_patches == len(np.unique(store.area)) == len(encoder.token_voxels())
    assert all((store.area[voxels] == store.area[voxels[0]]).all() for voxels in encoder.token_voxels())
    pipe = MindVideoPipeline.from_pretrained(run_dir / "model")
    assert type(pipe.fmri_encoder).__name__ == "AreaEncoder"
    shares = json.loads((run_dir / "explain" / "attention.json").read_text())
    assert set(shares) == {"adapt", "align", "cotrain"}
    rival = json.loads((run_dir / "baselines" / "mindvis" / "evaluate" / "scores.json").read_text())["ssim_rgb"]
    assert -1 <= rival["controls"]["shuffled"] != rival["value"] <= 1


def test_film_of_a_recording_and_of_a_segment(swapped_run: Path, cli: Cli, tmp_path: Path) -> None:
    file = swapped_run / "simulate" / "subject1" / "fmri" / "test1" / "cifti" / "test1_1_Atlas.dtseries.nii"
    code, text = cli("reconstruct", swapped_run, file, "--out", tmp_path / "a.mp4", "--first-volume", 1, "--scans", 9,
                     "--steps", 2, "--fps", 5, "--size", 16)  # fmt: skip
    assert code == 0, text
    assert "90 frames at 5 a second" in " ".join(text.split())
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert (container.streams.video[0].width, sum(1 for _ in container.decode(video=0))) == (16, 90)
    model = shutil.copytree(swapped_run / "model", tmp_path / "model")
    code, text = cli("reconstruct", model, file, "--out", tmp_path / "b.mp4", "--scans", 8, "--steps", 1)
    assert code == 0, text  # the voxel selection travels with the model
    code, text = cli("reconstruct", swapped_run, "test2", "--out", tmp_path / "c.mp4", "--scans", 3, "--steps", 1)
    assert code == 0, text
    code, text = cli("reconstruct", swapped_run, file)
    assert code == 1 and "--out FILM.mp4" in text
    code, text = cli("reconstruct", swapped_run, "--out", tmp_path / "d.mp4")
    assert code == 1 and "expected a recording with --out" in text


def test_own_encoders_that_cannot_be_used(tiny_recipe: Recipe) -> None:
    sizes = dict(num_voxels=60, window=2, condition_length=3, condition_width=4)
    encoder = CustomEncoder(OWN, **sizes, input_mean=0.5, input_scale=2.0).eval()
    fmri = torch.randn(3, 2, 60)
    with torch.no_grad():
        encoder.offset.fill_(1.5)
        torch.testing.assert_close(encoder(fmri), encoder.body((fmri - 0.5) / 2) + 1.5)
        with pytest.raises(ModelError, match=r"condition of shape \(3, 3, 4\) from .*WrongShape, found \(3, 2, 4\)"):
            CustomEncoder("convolution_encoder:WrongShape", **sizes)(fmri)
    with pytest.raises(SettingError, match="to take num_voxels, window"):
        CustomEncoder(OWN, **sizes, settings={"depth": 3})
    for name, message in (("nowhere:Class", "No module named"), ("json:loads", "naming a torch.nn.Module"),
                          ("convolution_encoder", "naming a torch"), ("convolution_encoder:No", "has no attribute")):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            import_encoder(name)


def test_converted_weights_take_the_place_of_pretraining(tiny_recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(3)
    released = MaskedBrainModel(4 * 13, patch_size=4, embed_dim=12, depth=1, num_heads=3, decoder_embed_dim=10,
                                decoder_depth=1, decoder_num_heads=5)  # fmt: skip
    released.pos_embed.copy_(torch.randn(1, 14, 12))
    released.save_pretrained(tmp_path / "released")
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), [f"pretrain.weights={tmp_path / 'released'}"])
    pretrain.run(StageContext.of(recipe, tmp_path, "pretrain"))
    scans = np.random.default_rng(5).normal(2, 3, (6, 4 * 21))
    model = adapt.starting_model(recipe, tmp_path, [VoxelLayout(4 * 21)], [scans])
    assert torch.equal(model.patch_embed.proj.weight, released.patch_embed.proj.weight)
    assert all(torch.equal(model.pos_embed[0, 1 + p], released.pos_embed[0, 1 + int(p * 13 / 21)]) for p in range(21))


def test_check_names_what_is_missing(cli: Cli, random_kit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_kit, tmp_path / "kit")
    shutil.rmtree(folder / "vae")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny = Path(__file__).parent / "tiny.yaml"
    code, text = cli(
        "check", tiny, "--set", f"foundation={folder}", "--set", "simulate=null", "--set", "data.captions=blip"
    )
    text = " ".join(text.split())
    assert code == 1
    for sentence in ("missing: expected the part 'vae'", "missing: expected weights such as diffusion_pytorch_model", "data.raw=FOLDER",
                     "expected HCP recordings, found none", "downloads: none", "vae: the subfolder of Stable Diffusion 1.5",
                     "assumed: vae of the published sizes"):  # fmt: skip
        assert sentence in text, sentence


def test_check_looks_into_every_kind_of_recordings(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    (tmp_path / "empty").mkdir()

    def missing(*settings: str) -> str:
        own = ["simulate=null", "pretrain.enabled=false", *settings]
        recipe = load_recipe(str(tmp_path / "recipe.yaml"), own)
        return " ".join(str(error) for error in refusals(recipe))

    assert missing(f"data.raw={tiny_run / 'simulate'}", "data.captions=truth") == ""
    assert "found no file" in missing(f"data.raw={tmp_path / 'empty'}", "data.captions=truth")
    said = missing(f"data.raw={tmp_path / 'empty'}", "data.source=published", "data.captions=published")
    assert "published arrays" in said and "captions" not in said
    assert "the films" in missing(f"data.raw={tmp_path / 'empty'}", "data.source=fmriprep", "data.captions=blip")


def test_check_counts_only_stages_that_run(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), ["animate.enabled=false", "cotrain.enabled=false"])
    needs = {need.stage for need in check_recipe(recipe, tiny_run).needs}
    assert "align" in needs and not {"animate", "cotrain"} & needs


def test_check_counts_what_a_stage_holds(tiny_run: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_recipe(tiny_recipe, tiny_run)
    assert not found.missing
    needs = {need.stage: need for need in found.needs}
    assert list(needs) == [stage for stage in STAGES if stage in needs] and {"align", "cotrain", "report"} <= set(needs)
    measured = {stage: json.loads((tiny_run / stage / "done.json").read_text()) for stage in needs}
    for stage in ("pretrain", "align", "animate", "cotrain"):
        assert 1 / 4 < needs[stage].memory_bytes / measured[stage]["peak_memory_bytes"] < 4
    (file,) = (tiny_run / "animate" / "model").glob("*.safetensors")
    sizes = {name: weight.numel() for name, weight in load_file(file).items()}
    tuned = sum(size for name, size in sizes.items() if any(part in name for part in ("attn1", "attn2", "_temp")))
    latents = 4 * 20 * 6 * 4 * 8 * 8 * 2  # windows of the training films, frames, channels, sides, bytes
    # the model; its checkpoint: weights, two moments, their average
    assert needs["animate"].disk_bytes == 4 * sum(sizes.values()) + 4 * 4 * tuned + latents
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1e6})())
    needed = Needs(tiny_recipe, tiny_run)
    lines = list(_advice(needed, [needs["align"]], tiny_run, torch.device("cpu")))
    assert lines[-1].startswith("align does not fit: ") and "weights and optimiser alone" in lines[-1]
    room = (
        needs["align"].memory_bytes - 2.5 * needed.networks.encoder(needed.sizes.layouts).item_bytes
    )  # for three samples of six
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": room})())
    lines = list(_advice(needed, [needs["align"]], tiny_run, torch.device("cpu")))
    assert "--set align.batch_size=3 --set align.accumulate=2" in lines[-1]


def test_check_counts_every_person(tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "_count", lambda *told: Network(11.0, 7.0, 5.0, 3.0))
    monkeypatch.setattr(Networks, "sampling_bytes", lambda *told: 13.0)
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    two = ["simulate.subjects=2", "data.subjects=[1, 2]", "align.encoder=areas", "align.encoder_settings={}"]
    several = Needs(load_recipe(str(tmp_path / "recipe.yaml"), two), tmp_path)
    alone = Needs(load_recipe(str(tmp_path / "recipe.yaml"), two[2:]), tmp_path)
    frames = alone.sizes.n_windows * alone.sizes.num_frames * 32 * 32 * 3  # once, whoever saw them
    recordings = alone._prepare().disk_bytes - frames
    assert several._prepare().disk_bytes == frames + 2 * recordings
    scans, latents = 120 * 400 * 4, 4 * 20 * 6 * 4 * 8 * 8 * 2  # windows x voxels; windows x frames x channels x sides
    assert alone.scans == scans and several.scans == 2 * scans
    one, both = (needs._around("cotrain")[0] for needs in (alone, several))
    assert both - one == scans + latents
    clip_set = 24 * 6 * 32 * 32 * 3
    one, both = (needs._reconstruct().disk_bytes for needs in (alone, several))
    assert both - one == clip_set * (2 + len(tiny_recipe.reconstruct.controls))
    one, both = (needs._evaluate().memory_bytes - needs.base for needs in (alone, several))
    assert both - one == pytest.approx(2 * clip_set)
    assert "2 people x" in several._explain().what and "people" not in alone._explain().what


def test_check_counts_ridge_regression_beside_areas(tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path) -> None:
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    recipe = load_recipe(
        str(tmp_path / "recipe.yaml"),
        ["align.encoder=ridge_areas", "align.encoder_settings={head_rank: 7}", "pretrain.enabled=false"],
    )  # pre-training counts areas like `adapt`, of ten times as many voxels
    found = check_recipe(recipe, tiny_run)
    assert not found.missing and {"adapt", "align"} <= {need.stage for need in found.needs}
    areas = change_recipe(recipe, {"align.encoder": "areas"})
    ridge, plain = (Needs(each, tiny_run).network("align") for each in (recipe, areas))
    assert ridge.parameters == plain.parameters  # what is fixed is not trained
    added = 4 * (2 * 400 + 7)  # a window of two scans of 400 voxels, and its reading, at the least
    assert ridge.item_bytes + ridge.fixed_bytes >= plain.item_bytes + plain.fixed_bytes
    assert added < ridge.item_bytes


def test_check_counts_every_vertex_where_none_is_left_out(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Before anything is prepared: as many voxels as the areas have vertices, and nothing assumed about them."""
    for areas, count in (("V1,MT", len(area_of("V1")) + len(area_of("MT"))), ("cortex", N_CORTEX)):
        data = tiny_recipe.data.model_copy(update={"areas": areas, "selection": "all"})
        sizes = StudySizes.of(tiny_recipe.model_copy(update={"data": data}), tmp_path)
        assert sizes.n_voxels == count == sizes.layouts[0].num_voxels
        assert not any("voxels" in note for note in sizes.notes)


def test_check_says_what_it_cannot_count(tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path) -> None:
    save_recipe(tiny_recipe, tmp_path / "recipe.yaml")
    own = ["align.encoder=convolution_encoder:ChoosyEncoder", "align.start_from=scratch", "align.encoder_settings={}"]
    found = check_recipe(load_recipe(str(tmp_path / "recipe.yaml"), own), tiny_run)
    assert any(line.startswith("not counted: what encoder keeps for a batch;") for line in found.lines)
    assert "align" in {need.stage for need in found.needs} and not found.missing
