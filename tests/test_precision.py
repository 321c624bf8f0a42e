"""Which precision a stage computes in: the hardware's, noted once, and kept by whoever goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mindvideo.config import Optimise, Reconstruct, load_recipe
from mindvideo.errors import DataError
from mindvideo.precision import fastest_precision, resolve_precisions, settle_precision, settled_precision
from mindvideo.train.loop import named_trainable, train

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, **has: bool) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_f": True} | has)


@pytest.mark.parametrize(("has", "expected"), [
    ({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"),
    ({"avx512_bf16": False, "amx_bf16": False}, "fp32"), ({"avx512_fp16": True}, "fp32"),
])  # fmt: skip
def test_a_cpu_computes_in_bf16_where_it_can(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: str
) -> None:
    machine(monkeypatch, **has)
    assert fastest_precision(CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_cuda_does_from_ampere_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert fastest_precision(torch.device("cuda", 0)) == expected


def test_auto_is_the_default_everywhere_but_where_a_setting_says_why() -> None:
    assert Optimise().precision == Reconstruct().precision == "auto"
    recipe = load_recipe("wen2018", ["distill.sampler_steps=4"])
    named = {name: section.precision for name, section in recipe if hasattr(section, "precision")}
    assert named == dict.fromkeys(
        ("pretrain", "adapt", "align", "animate", "cotrain", "distill", "reconstruct"), "auto"
    )


def test_what_was_chosen_holds_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, amx_bf16=True)
    assert settle_precision(tmp_path / "a", "auto", CPU) == "bf16"
    machine(monkeypatch)
    assert settle_precision(tmp_path / "a", "auto", CPU) == "bf16" == settled_precision(tmp_path / "a")
    assert settle_precision(tmp_path / "b", "auto", CPU) == "fp32"
    assert settle_precision(tmp_path / "b", "bf16", CPU) == "bf16"  # what the recipe says comes first
    assert resolve_precisions(load_recipe("demo"), CPU).align.precision == "fp32"
    assert settled_precision(tmp_path / "c") is None
    (tmp_path / "a" / "precision.txt").write_text("bf17")
    with pytest.raises(DataError, match="found 'bf17'; remove"):
        settle_precision(tmp_path / "a", "auto", CPU)


class Twice:
    """Doubles three numbers; notes the type that a matrix product comes out in."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.seen = torch.nn.Linear(3, 3), []

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return named_trainable(self.model)

    def sample(self, draw):
        return {"x": torch.from_numpy(draw.rng.standard_normal((4, 3)).astype("float32"))}

    def losses(self, batch):
        found = self.model(batch["x"])
        self.seen.append(found.dtype)
        return (found.float() - 2 * batch["x"]).square().mean(dim=1), {}


def test_a_killed_stage_goes_on_in_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Optimise(steps=2, batch_size=4, lr=1e-2, checkpoint_every=1, log_every=1)
    machine(monkeypatch, avx512_bf16=True)
    first, second = Twice(), Twice()
    train(first, settings, tmp_path / "stage", seed=1)
    machine(monkeypatch)
    train(second, settings.model_copy(update={"steps": 3}), tmp_path / "stage", seed=1)
    assert first.seen == [torch.bfloat16] * 2 and second.seen == [torch.bfloat16]


def test_a_study_writes_down_what_was_chosen(tiny_run: Path) -> None:
    done = {path.parent.name: json.loads(path.read_text())["precision"] for path in tiny_run.glob("*/done.json")}
    chosen = fastest_precision(CPU)
    trained = ("pretrain", "adapt", "align", "animate", "cotrain", "reconstruct")
    assert done == dict.fromkeys(("simulate", "prepare", "evaluate", "explain", "report")) | dict.fromkeys(
        trained, chosen
    )
