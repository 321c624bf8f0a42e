import math

import numpy as np
import pytest
import torch
from plain_transformer import arrays, encode_window

from mindvideo.errors import ModelError
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.encoders.read_out import ReadOutEncoder
from mindvideo.models.masked_brain import MaskedBrainModel

SIZES = dict(patch_size=4, embed_dim=12, depth=2, num_heads=3, condition_length=7, condition_width=10, dropout=0.3)


def make_encoder(num_voxels=22, window=2, seed=0, **settings):
    """A small encoder whose every weight is random, the temporal attention's output included."""
    torch.manual_seed(seed)
    encoder = FmriEncoder(num_voxels=num_voxels, window=window, **{**SIZES, **settings}).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize(
    ("window", "settings"),
    [
        (1, dict(mlp_ratio=4.0, has_temporal_attention=True)),
        (1, dict(mlp_ratio=4.0)),
        (2, dict(patch_weights="per_patch", layer_norm=True)),
        (3, dict(input_mean=0.3, input_scale=2.5)),
        (2, dict(has_temporal_attention=False, mlp_ratio=4.0, num_voxels=24)),
    ],
)
def test_condition_and_attention_agree_with_a_plain_implementation(window, settings):
    encoder = make_encoder(window=window, **settings)
    fmri = np.random.default_rng(1).normal(size=(5, window, encoder.config.num_voxels))
    tensor = torch.tensor(fmri, dtype=torch.float32)
    plain = [encode_window(arrays(encoder), encoder.config, one) for one in fmri]
    condition = encoder(tensor).detach()
    assert condition.shape == (5, 7, 10)
    np.testing.assert_allclose(condition, np.stack([one[0] for one in plain]), atol=2e-5)
    np.testing.assert_allclose(encoder.pool(condition), np.mean([one[0] for one in plain], axis=1), atol=2e-5)
    np.testing.assert_allclose(encoder.attention_maps(tensor), np.mean([one[1] for one in plain], axis=0), atol=1e-6)
    if encoder.config.has_temporal_attention:
        between = encoder.temporal_attention(tensor)
        assert between.shape == (2, window, window)
        np.testing.assert_allclose(between, np.mean([one[2] for one in plain], axis=0), atol=1e-6)


@pytest.mark.parametrize("patch_weights", ["shared", "per_patch"])
def test_first_windowed_output_equals_the_single_scan_one(patch_weights):
    torch.manual_seed(2)
    model = MaskedBrainModel(
        22,
        patch_size=4,
        patch_weights=patch_weights,
        embed_dim=12,
        depth=2,
        num_heads=3,
        decoder_embed_dim=10,
        decoder_depth=1,
        decoder_num_heads=5,
        input_mean=0.3,
        input_scale=2.0,
    )
    encoder = FmriEncoder.from_masked_brain(
        model, window=3, condition_length=7, condition_width=14, dropout=0.5, voxel_id="abc"
    )
    assert (encoder.config.voxel_id, encoder.config.input_mean, encoder.config.input_scale) == ("abc", 0.3, 2.0)
    fmri = torch.randn(5, 3, 22)
    tokens = encoder.eval().tokens(fmri)
    for scan in range(3):
        torch.testing.assert_close(tokens[:, scan], model.encode(fmri[:, scan]))
    mine, theirs = encoder.state_dict(), model.state_dict()
    shared = set(mine) & set(theirs) - {"mask_token"}
    assert len(shared) == 2 + 1 + 1 + 2 * 12 + 2  # patch embedding, class token, positions, blocks, norm
    assert all(torch.equal(mine[name], theirs[name]) for name in shared)
    for block in encoder.blocks:
        assert not block.attn_temp.proj.weight.any()
        assert not block.attn_temp.proj.bias.any()
        assert block.attn_temp.qkv.weight.any()
    with torch.no_grad():
        encoder.norm.weight.zero_()
    assert model.norm.weight.all()  # a copy, not a view


def test_temporal_attention_learns_although_it_starts_as_identity():
    torch.manual_seed(0)
    encoder = FmriEncoder(22, window=2, **{**SIZES, "dropout": 0.0})
    encoder(torch.randn(3, 2, 22)).square().sum().backward()
    assert encoder.blocks[0].attn_temp.proj.weight.grad.abs().sum() > 0


def test_weights_carry_the_released_names():
    encoder = make_encoder(24, depth=1)
    layers = [f"blocks.0.{name}" for name in ("norm1", "norm_temp", "norm2", "mlp.fc1", "mlp.fc2")]
    layers += [f"blocks.0.{attn}.{name}" for attn in ("attn", "attn_temp") for name in ("qkv", "proj")]
    layers += ["patch_embed.proj", "norm"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    expected |= {f"proj_head.{layer}.weight" for layer in ("channel_mapper", "projection", "fc")} | {"logit_scale"}
    unused = {"cls_token", "mask_token", "pos_embed"}
    assert set(encoder.state_dict()) == expected | unused
    assert set(dict(encoder.named_parameters())) == expected
    assert encoder.proj_head.channel_mapper.weight.shape == (7, 2 * 6)
    with_norm = set(make_encoder(24, depth=1, layer_norm=True).state_dict())
    assert with_norm - expected - unused == {"proj_head.layer_norm.weight", "proj_head.layer_norm.bias"}
    plain = set(make_encoder(24, depth=1, has_temporal_attention=False).state_dict())
    assert {name.split(".")[2] for name in expected | unused if name not in plain} == {"norm_temp", "attn_temp"}


def test_logit_scale_starts_at_the_temperature_of_clip():
    assert float(FmriEncoder(22, **SIZES).logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))


def test_a_window_of_one_scan_is_the_plain_encoder():
    """Paper section 5: it falls back to a normal MBM encoder, without 24 temporal attentions of 1024 channels."""

    def count(window):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in FmriEncoder(6016, window=window).parameters())

    patches, attention = 6016 // 16, 4 * 1024**2 + 4 * 1024 + 2 * 1024
    assert count(2) - count(1) == 24 * attention + 77 * patches
    encoder = FmriEncoder(22, window=1, **SIZES)
    assert encoder.config.has_temporal_attention is False and encoder.blocks[0].attn_temp is None
    assert FmriEncoder(22, window=2, **SIZES).config.has_temporal_attention is True


def test_stochastic_depth_drops_whole_windows_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = make_encoder(dropout=0.6).blocks[0].drop_path
    branch = torch.ones(20000, 2, 3)
    assert torch.equal(drop.eval()(branch), branch)
    dropped = drop.train()(branch)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0.0, 2.5])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)


def test_dropout_is_active_in_training_only():
    encoder = make_encoder()
    fmri = torch.randn(3, 2, 22)
    assert torch.equal(encoder(fmri), encoder(fmri))
    encoder.train()
    torch.manual_seed(5)
    first = encoder(fmri)
    torch.manual_seed(5)
    assert torch.equal(encoder(fmri), first)
    assert not torch.equal(encoder(fmri), first)
    assert encoder.proj_head.dropout.p == 0.3
    assert {block.drop_path.rate for block in encoder.blocks} == {0.3}


def test_save_and_load_give_the_same_numbers(tmp_path):
    encoder = make_encoder(layer_norm=True, voxel_id="a1b2", input_mean=0.1)
    encoder.save_pretrained(tmp_path)
    loaded = FmriEncoder.from_pretrained(tmp_path)
    assert (loaded.config.voxel_id, loaded.config.input_mean, loaded.config.window) == ("a1b2", 0.1, 2)
    fmri = torch.randn(3, 2, 22)
    assert torch.equal(loaded(fmri), encoder(fmri))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_encoder()(torch.zeros(3, 2, 21)), r"\(B, W=2, V=22\).*FmriEncoder, found \(3, 2, 21\)"),
        (lambda: make_encoder()(torch.zeros(3, 1, 22)), r"found \(3, 1, 22\)"),
        (lambda: make_encoder().attention_maps(torch.zeros(2, 22)), r"found \(2, 22\)"),
        (lambda: make_encoder(input_scale=0.0), "positive input_scale, found 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ModelError, match=message):
        call()


def test_an_encoder_that_mixes_no_scans_has_no_attention_between_them():
    assert make_encoder(has_temporal_attention=False).temporal_attention(torch.zeros(3, 2, 22)) is None


def test_gradient_checkpointing_and_bf16_autocast():
    encoder = make_encoder(dropout=0.0).train()
    fmri = torch.randn(3, 2, 22)
    encoder(fmri).square().mean().backward()
    plain = {name: parameter.grad for name, parameter in encoder.named_parameters() if name != "logit_scale"}
    encoder.zero_grad()
    encoder.enable_gradient_checkpointing()
    encoder(fmri).square().mean().backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(encoder.get_parameter(name).grad, gradient)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rough = encoder(fmri).float()
    exact = encoder(fmri).detach()
    assert (rough - exact).norm() < 0.03 * exact.norm()


def test_low_rank_head_is_one_linear_map_of_all_tokens() -> None:
    torch.manual_seed(3)
    encoder = ReadOutEncoder(
        num_voxels=21, window=2, patch_size=4, embed_dim=8, depth=1, num_heads=2, condition_length=5, condition_width=6,
        dropout=0.0, head_rank=3,
    ).eval()  # fmt: skip
    with torch.no_grad():
        encoder.proj_head.offset.normal_()
    fmri = torch.randn(4, 2, 21)
    tokens = encoder.tokens(fmri)
    expected = torch.empty(4, 5, 6)
    gather, spread = encoder.proj_head.gather.weight, encoder.proj_head.spread.weight
    for row in range(4):
        flat = torch.cat([tokens[row, scan, patch] for scan in range(2) for patch in range(6)])
        expected[row] = torch.stack([spread[i] @ (gather @ flat) for i in range(30)]).reshape(5, 6)
    torch.testing.assert_close(encoder(fmri), expected + encoder.proj_head.offset)
    map_of_tokens = (spread @ gather).detach()
    assert torch.linalg.matrix_rank(map_of_tokens) == 3
