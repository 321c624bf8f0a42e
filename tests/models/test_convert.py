import argparse
import json
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_transformer import encode_window, predict_masked
from plain_unet import PlainUNet
from released_layout import UNET, encoder_weights, masked_brain_weights, save_part, unet_weights

from mindvideo.errors import ModelError, SettingError
from mindvideo.models.convert import _diffusers_settings, convert_parts
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.released import read_release_file, rename_vae


def doubles(weights):
    return {name: weight.double().numpy() for name, weight in weights.items()}


@pytest.mark.parametrize("temporal", [True, False], ids=["spatiotemporal", "plain"])
@pytest.mark.parametrize(("window", "ratio", "layer_norm"), [(1, 4.0, False), (2, 1.0, True), (3, 4.0, False)])
@pytest.mark.parametrize("nested", [False, True])
def test_a_released_encoder_gives_the_published_condition(tmp_path, temporal, window, ratio, layer_norm, nested):
    weights = encoder_weights(window=window, ratio=ratio, temporal=temporal, layer_norm=layer_norm, seed=window)
    stored = {"model": weights, "epoch": 3} if nested else weights
    config = {"num_heads": 3, "_class_name": "fMRIEncoder", "global_pool": False}
    save_part(tmp_path / "release", stored, config, "model.pth" if nested else "diffusion_pytorch_model.bin")
    found = convert_parts(tmp_path / "release", tmp_path / "out")
    assert found.parts == {"": "FmriEncoder"}
    assert ("plain encoder" in " ".join(found.notes)) is not temporal
    assert "global_pool" in " ".join(found.notes)
    encoder = FmriEncoder.from_pretrained(tmp_path / "out").double().eval()
    fmri = np.random.default_rng(1).normal(size=(3, window, 24))
    stated = SimpleNamespace(
        patch_size=4, depth=2, num_heads=3, window=window, input_mean=0.0, input_scale=1.0, layer_norm=layer_norm,
        has_temporal_attention=temporal,
    )  # fmt: skip
    table = doubles(weights)["pos_embed"][0]
    expected = [encode_window(doubles(weights), stated, one, table)[0] for one in fmri]
    with torch.no_grad():
        condition = encoder(torch.from_numpy(fmri))
    assert condition.shape == (3, 7, 10)
    np.testing.assert_allclose(condition, np.stack(expected), atol=1e-6)


class Config_MBM_fMRI:  # noqa: N801 - the name that released checkpoints carry
    def __init__(self):
        self.num_heads, self.decoder_num_heads, self.mask_ratio, self.lr = 3, 5, 0.6, 2.5e-4
        self.roi = "VC"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A MinD-Vis pre-training checkpoint; the class its config was pickled with is gone when it is read."""

    def write(weights):
        module = types.ModuleType("config")
        module.Config_MBM_fMRI = Config_MBM_fMRI
        monkeypatch.setattr(Config_MBM_fMRI, "__module__", "config")
        monkeypatch.setitem(sys.modules, "config", module)
        path = tmp_path / "checkpoint.pth"
        optimizer = {
            "state": {0: {"step": 7, "exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        }
        scaler = {"scale": 65536.0, "growth_factor": 2.0}
        content = {"model": weights, "optimizer": optimizer, "epoch": 9, "scaler": scaler, "config": Config_MBM_fMRI()}
        torch.save(content, path)
        monkeypatch.delitem(sys.modules, "config")
        return path

    return write


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_a_pretraining_checkpoint_gives_the_published_loss(tmp_path, checkpoint, ratio):
    weights = masked_brain_weights(ratio=ratio)
    found = convert_parts(checkpoint(weights), tmp_path / "out")
    assert found.parts == {"": "MaskedBrainModel"} and "lr, roi" in " ".join(found.notes)
    model = MaskedBrainModel.from_pretrained(tmp_path / "out").double().eval()
    rng = np.random.default_rng(2)
    fmri, noise = rng.normal(size=(3, 52)), rng.uniform(size=(3, 13))
    with torch.no_grad():
        output = model(torch.from_numpy(fmri), noise=torch.from_numpy(noise))
    plain = doubles(weights)
    stated = SimpleNamespace(
        patch_size=4, depth=2, num_heads=3, decoder_embed_dim=10, decoder_depth=2, decoder_num_heads=5, mask_ratio=0.6,
        patch_weights="shared",
    )  # fmt: skip
    tables = plain["pos_embed"][0], plain["decoder_pos_embed"][0]
    parts = [predict_masked(plain, stated, fmri[i], noise[i], tables) for i in range(3)]
    np.testing.assert_allclose(output.prediction, np.stack([part[0] for part in parts]), atol=1e-6)
    assert float(output.loss) == pytest.approx(np.mean([part[2] for part in parts]), abs=1e-6)
    assert int(output.is_masked.sum()) == 3 * (13 - int(13 * 0.4))


def test_positions_are_interpolated_for_another_voxel_count_and_said_so(tmp_path, checkpoint):
    weights = masked_brain_weights()
    path = checkpoint(weights)
    found = convert_parts(path, tmp_path / "out", num_voxels=81)
    assert any("positions interpolated (nearest) from 13 to 21 patches" in note for note in found.notes)
    model = MaskedBrainModel.from_pretrained(tmp_path / "out")
    for name in ("pos_embed", "decoder_pos_embed"):
        assert torch.equal(getattr(model, name)[0, 0], weights[name][0, 0])
        for patch in range(21):
            assert torch.equal(getattr(model, name)[0, 1 + patch], weights[name][0, 1 + int(patch * 13 / 21)])
    assert model(torch.zeros(2, 81)).prediction.shape == (2, 21, 4)
    same = convert_parts(path, tmp_path / "same", num_voxels=50)
    assert any("positions unchanged" in note for note in same.notes)
    save_part(tmp_path / "encoder", encoder_weights(), {"num_heads": 3})
    with pytest.raises(ModelError, match=r"encoder's 6 for 30 voxels, found 8: misshapen proj_head.channel_mapper"):
        convert_parts(tmp_path / "encoder", tmp_path / "no", num_voxels=30)
    convert_parts(tmp_path / "encoder", tmp_path / "near", num_voxels=22)
    assert FmriEncoder.from_pretrained(tmp_path / "near")(torch.zeros(1, 2, 22)).shape == (1, 7, 10)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A released UNet's weights, and what became of them."""
    folder, weights = tmp_path_factory.mktemp("unet"), unet_weights()
    save_part(folder / "unet", weights, {**UNET, "_class_name": "UNet3DConditionModel"})
    found = convert_parts(folder / "unet", folder / "out")
    assert found.parts == {"": "VideoUNet"} and len(found.notes) == 1
    return weights, VideoUNet.from_pretrained(folder / "out").double().eval()


@pytest.mark.parametrize("frames", [1, 3, 6])
def test_a_released_unet_gives_the_published_noise(unet, frames):
    weights, model = unet
    generator = torch.Generator().manual_seed(frames)
    latents = torch.randn(4, frames, 8, 8, generator=generator).double()
    condition = torch.randn(5, 10, generator=generator).double()
    with torch.no_grad():
        sample = model(latents[None], 801, condition[None]).sample[0]
    expected = PlainUNet(weights, SimpleNamespace(**UNET, frame_positions=False))(latents, 801, condition)
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample, expected, atol=1e-6, rtol=0)


def test_a_2d_unet_lacks_the_temporal_parts_and_nothing_else(tmp_path):
    flat = unet_weights(temporal=False)
    save_part(tmp_path / "unet", flat, UNET)
    found = convert_parts(tmp_path / "unet", tmp_path / "out")
    assert any(f"{16 * 7} temporal weights (attn_temp, norm_temp) are new" in note for note in found.notes)
    unet = VideoUNet.from_pretrained(tmp_path / "out")
    assert not unet.mid_block.attentions[0].transformer_blocks[0].attn_temp.to_out[0].weight.any()
    some = unet_weights()
    del some["mid_block.attentions.0.transformer_blocks.0.attn_temp.to_q.weight"]
    save_part(tmp_path / "half", some, UNET)
    with pytest.raises(ModelError, match=r"found missing mid_block.attentions.0.*attn_temp.to_q.weight$"):
        convert_parts(tmp_path / "half", tmp_path / "no")


def test_every_wrong_weight_is_listed_by_name(tmp_path):
    weights = encoder_weights()
    del weights["blocks.1.attn.proj.bias"], weights["norm.weight"]
    weights["blocks.0.attn.extra"] = torch.zeros(2)
    weights["proj_head.fc.weight"] = torch.zeros(10, 9)
    save_part(tmp_path / "release", weights, {"num_heads": 3})
    with pytest.raises(ModelError) as caught:
        convert_parts(tmp_path / "release", tmp_path / "out")
    message = str(caught.value)
    assert "missing blocks.1.attn.proj.bias, norm.weight; unexpected blocks.0.attn.extra; misshapen" in message
    assert "proj_head.fc.weight (expected (10, 10), found (10, 9))" in message


def test_a_lost_layer_is_missing_where_the_depth_is_stated(tmp_path):
    save_part(tmp_path / "release", encoder_weights(depth=1), {"num_heads": 3, "depth": 2})
    with pytest.raises(ModelError, match=r"missing blocks.1.attn.proj.bias, blocks.1.attn.proj.weight"):
        convert_parts(tmp_path / "release", tmp_path / "out")


def test_weights_known_to_be_absent_are_named(tmp_path):
    weights = encoder_weights()
    del weights["cls_token"], weights["logit_scale"]
    weights["mask_token"] = torch.zeros(1, 1, 8)
    save_part(tmp_path / "release", weights, {"num_heads": 3})
    notes = " ".join(convert_parts(tmp_path / "release", tmp_path / "out").notes)
    assert "known to be absent, left as they start: cls_token, logit_scale" in notes
    assert "left out for their shape: mask_token" in notes
    assert FmriEncoder.from_pretrained(tmp_path / "out").config.num_heads == 3


def test_heads_must_be_stated_somewhere(tmp_path):
    save_part(tmp_path / "release", encoder_weights(), {})
    with pytest.raises(SettingError, match="--set num_heads=16"):
        convert_parts(tmp_path / "release", tmp_path / "out")
    convert_parts(tmp_path / "release", tmp_path / "out", overrides={"num_heads": 4})
    assert FmriEncoder.from_pretrained(tmp_path / "out").config.num_heads == 4
    with pytest.raises(SettingError, match="found 'heads'"):
        convert_parts(tmp_path / "release", tmp_path / "no", overrides={"heads": 4})


def test_the_extra_patch_of_released_padding_is_kept_and_said(tmp_path):
    save_part(tmp_path / "release", encoder_weights(patches=6), {"num_heads": 3, "num_voxels": 20})  # 5 patches fill 20
    notes = " ".join(convert_parts(tmp_path / "release", tmp_path / "out").notes)
    assert "states 20 voxels, its weights are for 6 patches: fMRI must be padded (wrapped round) to 24" in notes
    assert FmriEncoder.from_pretrained(tmp_path / "out").config.num_voxels == 24


def test_unknown_unet_settings_are_refused_unless_dropped(tmp_path):
    save_part(tmp_path / "unet", unet_weights(), {**UNET, "use_sc_attn": True, "old": None})
    with pytest.raises(ModelError, match=r"found use_sc_attn; .* --drop use_sc_attn"):
        convert_parts(tmp_path / "unet", tmp_path / "out")
    notes: list[str] = []
    stated = {"use_sc_attn": True, "old": None, "layers_per_block": 2}
    assert _diffusers_settings("VideoUNet", stated, tmp_path / "x.bin", ("use_sc_attn",), notes) == {
        "layers_per_block": 2
    }
    assert notes == ["settings left out: old, use_sc_attn"]


class Trap:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_pickle_is_executed(tmp_path, legacy):
    marker = tmp_path / "executed"
    torch.save({"model": {"a": torch.zeros(2)}, "config": Trap(marker)}, tmp_path / "trap.pth",
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    with pytest.raises(ModelError, match=r"posix.system, which would have to be executed"):
        read_release_file(tmp_path / "trap.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("prefix", "nest"),
    [
        ("module.", "model"),  # DistributedDataParallel
        ("_orig_mod.", "state_dict"),  # torch.compile
        ("_orig_mod.module.", "model_state_dict"),
        ("model.", "state_dict"),  # Lightning
        ("module._orig_mod.", None),
        ("_fsdp_wrapped_module.", "weights"),  # whatever its name, the only one that holds weights
    ],
)
def test_weights_of_wrapped_models_carry_their_own_names_again(tmp_path, prefix, nest):
    plain = masked_brain_weights()
    named = {prefix + name: weight for name, weight in plain.items()}
    named = {name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): w for name, w in named.items()}
    settings = argparse.Namespace(num_heads=3, decoder_num_heads=5, output_dir=Path("/somewhere"), best=np.float64(0.5))
    stored = {nest: named, "args": settings, "epoch": 3, "scaler": {}} if nest else named
    if nest == "state_dict":
        stored = {"model": stored}
    torch.save(stored, tmp_path / "checkpoint.pth")
    overrides = {} if nest else {"num_heads": 3, "decoder_num_heads": 5}
    convert_parts(tmp_path / "checkpoint.pth", tmp_path / "out", overrides=overrides)
    model = MaskedBrainModel.from_pretrained(tmp_path / "out")
    assert (model.config.num_heads, model.config.decoder_num_heads) == (3, 5)
    assert all(torch.equal(weight, plain[name]) for name, weight in model.state_dict().items())


def test_averaged_half_precision_and_sharded_weights_are_read(tmp_path):
    plain = masked_brain_weights()
    averaged = {"n_averaged": torch.tensor(9)} | {f"module.{name}": weight.half() for name, weight in plain.items()}
    torch.save(averaged, tmp_path / "averaged.pth", _use_new_zipfile_serialization=False)
    heads = {"num_heads": 3, "decoder_num_heads": 5}
    convert_parts(tmp_path / "averaged.pth", tmp_path / "out", overrides=heads)
    weights = MaskedBrainModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(weight, plain[name].half().float()) for name, weight in weights.items())
    folder, names = tmp_path / "shards", sorted(plain)
    folder.mkdir()
    place = {name: f"pytorch_model-0000{1 + name.startswith('decoder')}-of-00002.bin" for name in names}
    for file in set(place.values()):
        torch.save({name: plain[name] for name in names if place[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    (folder / "config.json").write_text(json.dumps(heads))
    convert_parts(folder, tmp_path / "whole")
    whole = MaskedBrainModel.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(whole[name], plain[name]) for name in names)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model-00002-of-00002\.bin, found no such file"):
        convert_parts(folder, tmp_path / "no")


def test_of_several_sets_of_weights_one_is_taken_and_said(tmp_path):
    plain, adam = masked_brain_weights(), {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}
    averaged = {name: weight + 1 for name, weight in plain.items()}
    stored = {
        "model_ema": averaged,
        "model": plain,
        "optimizer": adam,
        "args": argparse.Namespace(num_heads=3, decoder_num_heads=5),
    }
    torch.save(stored, tmp_path / "both.pth")
    notes = convert_parts(tmp_path / "both.pth", tmp_path / "out").notes
    assert [note for note in notes if "left out" in note] == [
        "weights under 'model' are taken, those under model_ema left out"
    ]
    weights = MaskedBrainModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in weights.items())


def test_a_weight_that_is_stored_twice_is_refused(tmp_path):
    weights = masked_brain_weights()
    torch.save(weights | {"module.norm.bias": weights["norm.bias"]}, tmp_path / "twice.pth")
    with pytest.raises(ModelError, match=r"found norm\.bias twice"):
        convert_parts(tmp_path / "twice.pth", tmp_path / "out")


def test_what_is_no_release_is_refused(tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"not a pickle at all")
    with pytest.raises(ModelError, match="found none that can be read"):
        convert_parts(tmp_path / "junk.pth", tmp_path / "out")
    torch.save({"model": {"a": 3}}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match=r"expected only tensors .* found a"):
        convert_parts(tmp_path / "numbers.pth", tmp_path / "out")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="found names like weight"):
        convert_parts(tmp_path / "other.pth", tmp_path / "out")
    with pytest.raises(ModelError, match="expected weights"):
        convert_parts(tmp_path, tmp_path / "out")
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ModelError, match="sharded checkpoint; join it: python -m torch"):
        convert_parts(tmp_path, tmp_path / "out")


def test_old_vae_attention_names_and_shapes():
    renamed = rename_vae(
        {
            "encoder.mid_block.attentions.0.query.weight": torch.arange(6.0).view(2, 3, 1, 1),
            "encoder.mid_block.attentions.0.proj_attn.bias": torch.zeros(2),
            "encoder.conv_in.weight": torch.zeros(2, 3, 1, 1),
        }
    )
    assert renamed["encoder.mid_block.attentions.0.to_q.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert renamed["encoder.mid_block.attentions.0.to_out.0.bias"].shape == (2,)
    assert renamed["encoder.conv_in.weight"].ndim == 4


def test_settings_survive_as_plain_json(tmp_path):
    save_part(tmp_path / "release", encoder_weights(), {"num_heads": 3, "dropout": 0.25})
    convert_parts(tmp_path / "release", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dropout"] == 0.25
