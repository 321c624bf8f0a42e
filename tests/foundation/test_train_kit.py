"""Every part of the kit trains, at two steps, from films drawn on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindvideo.errors import ModelError
from mindvideo.foundation import kit, train
from mindvideo.foundation.card import write_cards
from mindvideo.foundation.tasks import marginal_losses
from mindvideo.models.foundation import PARTS, Foundation


def test_every_part_trains_and_the_folder_stays_a_foundation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {part: train._part(2, 4, 1e-3, checkpoint_every=1) for part in train.PARTS}
    monkeypatch.setitem(train.RECIPES, "quick", {"clips": 6, **quick})
    monkeypatch.setattr(kit, "KIT", kit.TEST)
    out = kit.build_kit(tmp_path / "kit", "test", seed=3)
    before = {path: load_file(path) for path in out.rglob("*.safetensors")}
    for part in train.PARTS:
        train.train_part(out, part, "quick", seed=3)
        assert json.loads((out / "work" / part / "made.json").read_text())["settings"]["steps"] == 2
    for path, weights in before.items():
        after = load_file(path)
        assert after.keys() == weights.keys()
        assert all(torch.isfinite(tensor.float()).all() for tensor in after.values())
        assert any(not torch.equal(tensor.float(), weights[name].float()) for name, tensor in after.items()), path
    Foundation(out).require(*PARTS)
    assert not any("_name_or_path" in path.read_text() for path in out.glob("*/config.json"))
    write_cards(out, [{"gate": "unet: x", "found": 0.5, "wanted": 0.9, "passed": False}])
    assert "| unet: x | 0.500 | 0.9 | no |" in (out / "unet" / "card.md").read_text()


def test_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lungs"):
        train.train_part(tmp_path, "lungs")


def test_marginal_losses_against_sums_of_probabilities() -> None:
    logits = torch.randn(5, 3 * 4, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 5, 11, 7, 2])
    table = logits.softmax(1).reshape(5, 3, 4)
    first = -table.sum(2)[torch.arange(5), target // 4].log().mean()
    second = -table.sum(1)[torch.arange(5), target % 4].log().mean()
    torch.testing.assert_close(marginal_losses(logits, target, 4), first + second)
