"""Fixtures of the rivals' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import write_store

from mindvideo.config import Recipe, parse_recipe, save_recipe
from mindvideo.data.store import Store


@pytest.fixture(scope="session")
def rival_recipe(random_kit: Path) -> Recipe:
    loop = {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "log_every": 1, "precision": "fp32"}
    content: dict[str, Any] = {
        "foundation": str(random_kit),
        "seed": 5,
        "encoder": {"patch_size": 5, "embed_dim": 12, "depth": 1, "num_heads": 3, "patch_weights": "per_patch"},
        "pretrain": {"enabled": False},
        "adapt": {"enabled": False},
        "reconstruct": {"steps": 2, "guidance_scale": 2.0, "batch_size": 5, "max_windows": 16, "precision": "fp32"},
        "evaluate": {"n_ways": [2], "block_s": 6.0, "permutations": 99, "bootstraps": 99},
        "baseline": {
            "ridge": {"components": 6},
            "linear": {"components": 9},
            "gan": {**loop, "components": 5, "width": 8, "noise_width": 3},
            "separable": {**loop, "encoder_steps": 3, "width": 8, "perceptual_layer": 1},
            "mindvis": {**loop, "token_weight": 0.3},
        },
    }
    return parse_recipe(content)


@pytest.fixture(scope="session")
def rival_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("prepared") / "store.zarr")


@pytest.fixture
def run_dir(tmp_path: Path, rival_recipe: Recipe) -> Path:
    """A run folder with a recipe and nothing else."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_recipe(rival_recipe, folder / "recipe.yaml")
    return folder
