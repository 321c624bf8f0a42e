"""Weights split over two processes (FSDP over gloo, CPU): the losses, weights, files and bits of whole ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_tasks import losses
from split_tasks import SETTINGS, fit
from test_distributed import comparable, kill_one, together

from mindvideo.models.masked_brain import MaskedBrainModel

PROGRAM = Path(__file__).parent / "split_tasks.py"
SPLIT = {"ACCELERATE_USE_FSDP": "true"}
BOUND = {"plain": 1e-5, "saving": 1e-5, "bf16": 5e-3}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    together(folder, PROGRAM, **SPLIT)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for name in SETTINGS:
        fit(name, folder)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_sharded_weights_have_the_losses_and_parameters_of_whole_ones(name: str, split: Path, alone: Path) -> None:
    expected, found = losses(alone / name), losses(split / name)
    assert len(expected) == 4 and max(expected) - min(expected) > 1e-2
    assert found == pytest.approx(expected, abs=BOUND[name])
    last = [json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (alone, split)]
    assert last[1]["validation_loss"] == pytest.approx(last[0]["validation_loss"], abs=BOUND[name])
    if name != "bf16":  # there AdamW scales the rounding of small gradients up to whole steps
        torch.testing.assert_close(comparable(split / name), comparable(alone / name), rtol=0, atol=1e-5)


def test_each_process_holds_half_and_the_saved_model_is_whole(split: Path, alone: Path) -> None:
    for name in SETTINGS:
        held = [json.loads((split / f"{name}_{rank}.json").read_text()) for rank in range(2)]
        assert {process["class"] for process in held} == {"FSDPMaskedBrainModel"}
        found, expected = (load_file(next((run / name / "model").glob("*.safetensors"))) for run in (split, alone))
        assert {key: (weight.shape, weight.dtype) for key, weight in found.items()} == {
            key: (weight.shape, weight.dtype) for key, weight in expected.items()
        }
        weights = [weight for key, weight in found.items() if "pos_embed" not in key]
        first = sum(weight[: -(-len(weight) // 2)].nbytes for weight in weights)  # of an odd number of rows one more
        assert [process["bytes"] for process in held] == [first, sum(weight.nbytes for weight in weights) - first]
        configs = [(run / name / "model" / "config.json").read_bytes() for run in (split, alone)]
        assert configs[0] == configs[1]
        state = load_file(split / name / "state" / "tensors.safetensors")
        saved = dict(MaskedBrainModel.from_pretrained(split / name / "model").named_parameters())
        assert saved and all(torch.equal(weight, state[f"average/{key}"]) for key, weight in saved.items())


def test_a_killed_split_run_ends_with_the_same_bits(split: Path, tmp_path: Path) -> None:
    kill_one(tmp_path, 1, "saving:3", PROGRAM, **SPLIT)
    assert json.loads((tmp_path / "saving" / "state" / "state.json").read_text())["step"] == 2
    together(tmp_path, PROGRAM, **SPLIT)
    for name in SETTINGS:
        assert losses(tmp_path / name) == losses(split / name)
        first, second = (load_file(run / name / "state" / "tensors.safetensors") for run in (tmp_path, split))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), name


def test_a_split_run_goes_on_in_one_process(split: Path, alone: Path, tmp_path: Path) -> None:
    for run, source in ((tmp_path / "from_split", split), (tmp_path / "from_alone", alone)):
        shutil.copytree(source / "plain" / "state", run / "plain" / "state")
        fit("plain", run, steps=6)
    expected, found = losses(tmp_path / "from_alone" / "plain"), losses(tmp_path / "from_split" / "plain")
    assert len(found) == 2
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_both_before_the_weights_change(split: Path) -> None:
    told = [json.loads((split / f"error_{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert "sample 7" in told[0]["error"] and f"at step {told[0]['n_steps']} " in told[0]["error"]
    assert told[0]["n_steps"] >= 2
    assert told[0]["is_left"]
