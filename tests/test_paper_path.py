"""The paper's own combination, from recordings to the report, at tiny size and on parts in the layout of real weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from mindvideo.config import Recipe, load_recipe
from mindvideo.data.store import Store
from mindvideo.models.encoders.fmri_encoder import FmriEncoder, ProjectionHead
from mindvideo.models.foundation import Foundation
from mindvideo.study import Study

TINY = """
base: wen2018
name: paper-tiny
seed: 1
simulate: {train_segments: 4, test_segments: 2, segment_s: 40, train_runs: 2, test_runs: 2, areas: visual, size: 32, source_fps: 6,
           noise: 0.3, pretrain_people: 2, pretrain_runs: 1, pretrain_run_s: 72}
data: {size: 32, wen2018: {expect: null}, selection: top_k, k: 400, captions: truth}
encoder: {embed_dim: 16, depth: 2, num_heads: 2, decoder_embed_dim: 16, decoder_depth: 1, decoder_num_heads: 2}
pretrain: {steps: 3, warmup_steps: 1, batch_size: 4}
adapt: {steps: 3, batch_size: 5}
align: {steps: 4, batch_size: 6}
animate: {steps: 3, batch_size: 3}
cotrain: {steps: 3, batch_size: 2}
reconstruct: {steps: 3, max_windows: 8, controls: [shuffled, mean]}
evaluate: {block_s: 8, permutations: 99, bootstraps: 99}
explain: {max_windows: 6}
baselines: [ridge]
"""


@pytest.fixture(scope="module")
def weights(random_kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit as Stable Diffusion 1.5 comes: a text tower without projection, and a whole CLIP as ``image_encoder``."""
    folder = tmp_path_factory.mktemp("weights") / "foundation"
    shutil.copytree(random_kit, folder)
    plain = Foundation(random_kit)
    text, vision = plain.text_encoder, plain.image_encoder
    width = text.config.projection_dim
    clip = CLIPModel(
        CLIPConfig(text_config=text.config.to_dict(), vision_config=vision.config.to_dict(), projection_dim=width)
    )
    known = clip.state_dict()
    clip.load_state_dict(known | {name: value for name, value in (text.state_dict() | vision.state_dict()).items()
                                  if name in known})  # fmt: skip
    for part in ("text_encoder", "image_encoder"):
        shutil.rmtree(folder / part)
    CLIPTextModel.from_pretrained(random_kit / "text_encoder").save_pretrained(folder / "text_encoder")
    clip.save_pretrained(folder / "image_encoder")
    shutil.copy(random_kit / "image_encoder" / "preprocessor_config.json", folder / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def recipe(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "paper.yaml"
    path.write_text(TINY)
    return load_recipe(str(path), [f"foundation={weights}"])


@pytest.fixture(scope="module")
def run_dir(recipe: Recipe, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the recordings of the tiny study."""
    folder = tmp_path_factory.mktemp("runs") / "paper"
    shutil.copytree(tiny_run / "simulate", folder / "simulate")
    ran = Study(recipe, folder).run(say=lambda line: None)
    assert ran[0] == "prepare" and ran[-1] == "report"
    return folder


def test_it_is_the_papers_combination(recipe: Recipe, run_dir: Path, weights: Path, random_kit: Path) -> None:
    assert (recipe.reconstruct.scheduler, recipe.align.token_weight, recipe.align.augmentation) == ("ddim", 0, "drawn")
    encoder = FmriEncoder.from_pretrained(run_dir / "align" / "model")
    assert (encoder.config.patch_weights, encoder.config.patch_size, encoder.config.window) == ("shared", 16, 2)
    assert isinstance(encoder.proj_head, ProjectionHead)
    assert encoder.blocks[1].drop_path.rate == encoder.proj_head.dropout.p == 0.6
    ours, whole = Foundation(random_kit), Foundation(weights)
    found, expected = (kit.encode_text(["a red car", "a dog runs"]) for kit in (whole, ours))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_every_score_is_there_and_no_validation_figure(run_dir: Path) -> None:
    scores = json.loads((run_dir / "evaluate" / "scores.json").read_text())
    for name in ("ssim_rgb", "video_2way", "video_50way", "image_2way", "image_50way"):
        assert math.isfinite(scores[name]["value"]) and math.isfinite(scores[name]["controls"]["shuffled"])
    store = Store.open(run_dir / "prepare" / "store.zarr")
    assert (store.segments("validation"), len(store.segments("train"))) == ([], 4)
    for stage in ("pretrain", "adapt", "align", "animate", "cotrain"):
        rows = [json.loads(line) for line in (run_dir / stage / "metrics.jsonl").open()]
        assert rows and math.isfinite(rows[-1]["loss"])
        assert not [name for row in rows for name in row if "validation" in name or "ridge" in name]


def test_rivals_choose_by_cross_validation_and_the_report_says_so(run_dir: Path) -> None:
    fitted = json.loads((run_dir / "baselines" / "ridge" / "fit.json").read_text())
    assert math.isfinite(fitted["cross_validation_token_r2"]) and fitted["cross_validation_token_r2"] < 1
    page = (run_dir / "report" / "index.html").read_text()
    assert "No training film was held out (data.validation_segments = 0, as in the paper)" in page
    assert "Validation is measured on training films" not in page
