"""Every part of the kit trains, at two steps, from films drawn on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mindvideo.errors import ModelError
from mindvideo.foundation import kit, train
from mindvideo.foundation.card import write_cards
from mindvideo.foundation.pool import Pool, encode_pool
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
        assert json.loads((out / "work" / part / "made.json").read_text())["rounds"][0]["settings"]["steps"] == 2
    for path, weights in before.items():
        after = load_file(path)
        assert after.keys() == weights.keys()
        assert all(torch.isfinite(tensor.float()).all() for tensor in after.values())
        assert any(not torch.equal(tensor.float(), weights[name].float()) for name, tensor in after.items()), path
    finished = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    for part in train.PARTS:  # once more: a part that later ones went on with must not be put back
        train.train_part(out, part, "quick", seed=3)
        assert all(path.read_bytes() == content for path, content in finished.items()), part
    Foundation(out).require(*PARTS)
    assert not any("_name_or_path" in path.read_text() for path in out.glob("*/config.json"))
    write_cards(out, [{"gate": "unet: x", "found": 0.5, "wanted": 0.9, "passed": False}])
    assert "| unet: x | 0.500 | 0.9 | no |" in (out / "unet" / "card.md").read_text()

    monkeypatch.setitem(
        train.RECIPES, "longer", {"clips": 6, **quick, "clip": train._part(3, 4, 1e-3, checkpoint_every=1)}
    )
    with pytest.raises(
        ModelError,
        match=r"work/clip to be made with recipe longer, steps 3, found that it ended with recipe quick, steps 2",
    ):
        train.train_part(out, "clip", "longer", seed=3)
    (out / "work" / "clip" / "made.json").unlink()
    (out / "work" / "clip" / "begun.json").unlink()
    with pytest.raises(ModelError, match=r"work/clip .*found no note of it; remove that folder"):
        train.train_part(out, "clip", "quick", seed=3)


def test_a_pool_of_other_clips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "KIT", kit.TEST)
    drawn = Pool.open(tmp_path, 3, seed=1).frames
    with pytest.raises(ModelError, match=r"made with clips 4, found clips 3; remove that folder"):
        Pool.open(tmp_path, 4, seed=1)
    with pytest.raises(ModelError, match=r"made with seed 2, found seed 1"):
        Pool.open(tmp_path, 3, seed=2)
    (tmp_path / "pool.json").unlink()  # drawn before there were notes
    np.testing.assert_array_equal(Pool.open(tmp_path, 3, seed=1).frames, drawn)
    with pytest.raises(ModelError, match="clips 3"):
        Pool.open(tmp_path, 4, seed=1)


def test_latents_are_those_of_the_encoder_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "KIT", kit.TEST)
    pool, vae, path = Pool.open(tmp_path / "pool", 3, seed=1), kit.build_vae(kit.TEST).eval(), tmp_path / "latents.npy"
    first = encode_pool(vae, pool, (0, 2), path, None)
    path.with_suffix(".json").unlink()  # latents of before there were notes, from who knows what
    np.save(path, np.zeros(2))
    assert torch.equal(encode_pool(vae, pool, (0, 2), path, None), first)
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(2)
    kept = path.stat().st_mtime_ns
    encode_pool(vae, pool, (0, 2), path, None)
    assert path.stat().st_mtime_ns == kept
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(2)
    assert not torch.equal(encode_pool(vae, pool, (0, 2), path, None), first)


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
