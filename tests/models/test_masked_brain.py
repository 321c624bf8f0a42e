import json

import numpy as np
import pytest
import torch
from plain_transformer import (
    arrays,
    block,
    embed_patches,
    layer_norm,
    mlp,
    positions,
    predict_masked,
)

from mindvideo.errors import ModelError
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.transformer import interpolate_positions, sincos_position, split_patches

SIZES = dict(
    patch_size=4, embed_dim=12, depth=2, num_heads=3, decoder_embed_dim=10, decoder_depth=1, decoder_num_heads=5
)


def make_model(num_voxels=50, seed=0, **settings):
    """A small model whose every weight is random, so that no bias or norm hides behind a zero or a one."""
    torch.manual_seed(seed)
    model = MaskedBrainModel(num_voxels=num_voxels, **{**SIZES, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("patch_weights", ["shared", "per_patch"])
@pytest.mark.parametrize(("num_voxels", "mlp_ratio", "mask_ratio"), [(50, 1.0, 0.75), (44, 4.0, 0.6)])
def test_loss_and_prediction_agree_with_a_plain_implementation(patch_weights, num_voxels, mlp_ratio, mask_ratio):
    model = make_model(num_voxels, patch_weights=patch_weights, mlp_ratio=mlp_ratio, mask_ratio=mask_ratio)
    rng = np.random.default_rng(1)
    fmri, noise = rng.normal(size=(3, num_voxels)), rng.uniform(size=(3, model.num_patches))
    output = model(torch.tensor(fmri, dtype=torch.float32), noise=torch.tensor(noise, dtype=torch.float32))
    errors = []
    for scan in range(3):
        prediction, is_masked, error = predict_masked(arrays(model), model.config, fmri[scan], noise[scan])
        np.testing.assert_allclose(output.prediction[scan].detach().numpy(), prediction, atol=1e-5)
        np.testing.assert_array_equal(output.is_masked[scan].numpy(), is_masked)
        errors.append(error)
    assert float(output.loss) == pytest.approx(np.mean(errors), abs=1e-5)
    assert output.is_masked.sum(1).unique().item() == model.num_patches - int(model.num_patches * (1 - mask_ratio))


def test_scans_are_scaled_first_and_the_loss_is_of_scaled_values():
    plain, scaled = make_model(), make_model(input_mean=1.5, input_scale=4.0)
    fmri, noise = torch.randn(3, 50), torch.rand(3, 13)
    expected, found = plain((fmri - 1.5) / 4.0, noise=noise), scaled(fmri, noise=noise)
    torch.testing.assert_close(found.sample_loss, expected.sample_loss)
    torch.testing.assert_close(found.prediction, expected.prediction)
    assert float(found.loss) == pytest.approx(float(found.sample_loss.mean()))
    torch.testing.assert_close(scaled.encode(fmri), plain.encode((fmri - 1.5) / 4.0))
    assert (plain.config.input_mean, plain.config.input_scale) == (0.0, 1.0)  # as released weights are
    other = MaskedBrainModel.from_other_voxels(scaled, 46, input_mean=-0.5, input_scale=2.0)
    assert (other.config.input_mean, other.config.input_scale, other.config.num_voxels) == (-0.5, 2.0, 46)
    with pytest.raises(ModelError, match=r"positive input_scale, found 0\.0"):
        make_model(input_scale=0.0)


@pytest.mark.parametrize("patch_weights", ["shared", "per_patch"])
def test_encode_sees_all_patches_and_no_class_token(patch_weights):
    model = make_model(patch_weights=patch_weights)
    weights = arrays(model)
    scan = np.random.default_rng(2).normal(size=50)
    tokens = embed_patches(scan, weights, 4)
    for layer in range(2):
        tokens = block(tokens, weights, f"blocks.{layer}", 3)
    fmri = torch.tensor(scan[None], dtype=torch.float32)
    np.testing.assert_allclose(model.encode(fmri)[0].detach(), layer_norm(tokens, weights, "norm"), atol=1e-5)


def test_prediction_never_sees_the_masked_values():
    model = make_model(48)
    fmri, noise = torch.randn(2, 48), torch.rand(2, 12)
    first = model(fmri, noise=noise)
    changed = torch.where(first.is_masked.repeat_interleave(4, dim=1), 9.0, fmri)
    torch.testing.assert_close(model(changed, noise=noise).prediction, first.prediction)
    assert model(changed, noise=noise).loss != first.loss


def test_mask_of_a_generator_is_reproducible_and_ratio_can_change():
    model = make_model()
    fmri = torch.randn(5, 50)
    first, again = (model(fmri, generator=torch.Generator().manual_seed(7)).is_masked for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert model(fmri, mask_ratio=0.4).is_masked.sum(1).tolist() == [13 - 7] * 5


def test_weights_carry_the_released_names_and_positions_are_not_trained():
    model = make_model(48, depth=1)
    one = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    layers = [f"{where}.0.{name}" for where in ("blocks", "decoder_blocks") for name in one]
    layers += ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    expected |= {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
    state = model.state_dict()
    assert set(state) == expected
    assert set(dict(model.named_parameters())) == expected - {"pos_embed", "decoder_pos_embed"}
    assert state["patch_embed.proj.weight"].shape == (12, 1, 4)
    assert state["pos_embed"].shape == (1, 13, 12)
    assert state["decoder_pred.weight"].shape == (4, 10)
    np.testing.assert_allclose(state["pos_embed"][0], positions(12, 12), atol=1e-6)
    np.testing.assert_allclose(state["decoder_pos_embed"][0], positions(12, 10), atol=1e-6)


def test_per_patch_matrices_have_a_row_for_every_patch():
    state = make_model(50, patch_weights="per_patch").state_dict()
    assert state["patch_embed.proj.weight"].shape == (13, 12, 4)
    assert state["patch_embed.proj.bias"].shape == (13, 12)
    assert state["decoder_pred.weight"].shape == (13, 4, 10)
    assert state["decoder_pred.bias"].shape == (13, 4)


def test_initialisation_is_that_of_masked_autoencoders():
    torch.manual_seed(0)
    model = MaskedBrainModel(4000, patch_weights="per_patch", **{**SIZES, "embed_dim": 48})
    for weight, fan in ((model.patch_embed.proj.weight, 4 + 48), (model.blocks[0].attn.qkv.weight, 48 + 144)):
        bound = np.sqrt(6 / fan)
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.5)
    assert all(not layer.bias.any() for layer in (model.patch_embed.proj, model.decoder_pred, model.decoder_embed))


@pytest.mark.parametrize("num_voxels", [1, 3, 5, 10, 11])
def test_patches_wrap_like_numpy(num_voxels):
    fmri = np.random.default_rng(0).normal(size=(2, 3, num_voxels))
    padded = np.pad(fmri, ((0, 0), (0, 0), (0, -num_voxels % 5)), mode="wrap").reshape(2, 3, -1, 5)
    np.testing.assert_array_equal(split_patches(torch.tensor(fmri), 5).numpy(), padded)


def test_positions_interpolate_to_the_nearest_and_keep_the_class_row():
    table = torch.randn(1, 8, 6)
    stretched = interpolate_positions(table, 17)
    assert torch.equal(stretched[0, 0], table[0, 0])
    for patch in range(17):
        assert torch.equal(stretched[0, 1 + patch], table[0, 1 + int(patch * 7 / 17)])
    assert torch.equal(interpolate_positions(table, 7), table)


def test_odd_widths_have_no_positions():
    with pytest.raises(ModelError, match=r"even embedding width .* found 7"):
        sincos_position(3, 7)


@pytest.mark.parametrize("patch_weights", ["shared", "per_patch"])
@pytest.mark.parametrize(("num_voxels", "num_patches"), [(51, 13), (30, 8)])
def test_another_voxel_count_keeps_what_can_be_kept(patch_weights, num_voxels, num_patches):
    model = make_model(50, patch_weights=patch_weights)
    other = MaskedBrainModel.from_other_voxels(model, num_voxels)
    assert (other.config.num_voxels, other.num_patches) == (num_voxels, num_patches)
    own = {"pos_embed", "decoder_pos_embed"}
    if patch_weights == "per_patch" and num_patches != 13:
        own |= {f"{layer}.{kind}" for layer in ("patch_embed.proj", "decoder_pred") for kind in ("weight", "bias")}
    before, after = model.state_dict(), other.state_dict()
    for name in set(before) - own:
        assert torch.equal(before[name], after[name]), name
    np.testing.assert_allclose(after["pos_embed"][0], positions(num_patches, 12), atol=1e-6)
    assert other(torch.randn(2, num_voxels)).prediction.shape == (2, num_patches, 4)
    with torch.no_grad():
        other.norm.weight.zero_()
    assert model.norm.weight.abs().sum() > 0  # a copy, not a view

    stretched = MaskedBrainModel.from_other_voxels(model, num_voxels, positions="interpolate")
    assert torch.equal(stretched.pos_embed, interpolate_positions(model.pos_embed, num_patches))


def test_save_and_load_give_the_same_numbers(tmp_path):
    model = make_model(patch_weights="per_patch", mlp_ratio=1.5)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = MaskedBrainModel.from_pretrained(tmp_path)
    assert loaded.config.mlp_ratio == 1.5
    fmri, noise = torch.randn(3, 50), torch.rand(3, 13)
    assert torch.equal(loaded(fmri, noise=noise).loss, model(fmri, noise=noise).loss)


def damaged(folder, how):
    """Damage a saved model."""
    weights = folder / "diffusion_pytorch_model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "pickle":
        torch.save({}, folder / "diffusion_pytorch_model.bin")
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    else:
        config |= {
            "missing": {"depth": 3},
            "unexpected": {"depth": 1},
            "misshapen": {"patch_size": 5},
            "unknown": {"dpeth": 2},
        }[how]
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing .*blocks\.2\.attn"),
        ("unexpected", r"unexpected .*blocks\.1\.attn"),
        ("misshapen", r"pos_embed expected shape .*, 11, 10.* got .*, 14, 10\]\); give"),
        ("unknown", r"found dpeth"),
        ("truncated", r"expected config.json and safetensors"),
        ("pickle", r"expected config.json and safetensors"),
        ("no config", r"expected config.json and safetensors"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, how, message):
    make_model().save_pretrained(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(ModelError, match=message):
        MaskedBrainModel.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        MaskedBrainModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_model()(torch.zeros(2, 48)), r"\(B, V=50\).*found \(2, 48\)"),
        (lambda: make_model().encode(torch.zeros(2, 1, 50)), r"\(B, V=50\).*found \(2, 1, 50\)"),
        (lambda: make_model()(torch.zeros(2, 50), noise=torch.zeros(2, 12)), r"\(2, 13\), found \(2, 12\)"),
        (lambda: make_model()(torch.zeros(2, 50), mask_ratio=0.95), r"13 patches .* found 0.95 \(0 visible\)"),
        (lambda: make_model(embed_dim=10), "10 and 3 heads"),
        (lambda: make_model(patch_weights="own"), "found 'own'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ModelError, match=message):
        call()


def test_gradient_checkpointing_and_bf16_autocast():
    model = make_model().train()
    fmri, noise = torch.randn(3, 50), torch.rand(3, 13)
    model(fmri, noise=noise).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(fmri, noise=noise).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])
        assert plain[name].abs().sum() > 0 or name.endswith("qkv.bias"), name
    with torch.autocast("cpu", torch.bfloat16):
        output = model(fmri, noise=noise)
    assert output.loss.dtype == torch.float32
    assert float(output.loss) == pytest.approx(float(model(fmri, noise=noise).loss), rel=0.03)


def test_plain_mlp_is_used():  # the plain parts above are themselves checked against torch once
    rng = np.random.default_rng(3)
    x, weights = (
        rng.normal(size=(4, 6)),
        {"m.fc1.weight": rng.normal(size=(5, 6)), "m.fc2.weight": rng.normal(size=(6, 5))},
    )
    tensors = {name: torch.tensor(weight) for name, weight in weights.items()}
    hidden = torch.nn.functional.gelu(torch.tensor(x) @ tensors["m.fc1.weight"].T)
    np.testing.assert_allclose(mlp(x, weights, "m"), hidden @ tensors["m.fc2.weight"].T, atol=1e-12)
