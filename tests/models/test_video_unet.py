import copy

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from plain_unet import PlainUNet

from mindvideo.errors import ModelError
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.interfaces import share_noise

# Stable Diffusion 1.x: one number of heads, convolutional projections. 2.x: heads level by level, linear projections.
SD1 = dict(
    sample_size=8,
    block_out_channels=(8, 16, 16),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=4,
    cross_attention_dim=11,
    attention_head_dim=2,
    layers_per_block=1,
)
SD2 = SD1 | dict(
    block_out_channels=(8, 24, 32),
    attention_head_dim=(2, 3, 8),
    use_linear_projection=True,
    cross_attention_dim=13,
    transformer_layers_per_block=(1, 2, 1),
)
FAMILIES = pytest.mark.parametrize("settings", [SD1, SD2], ids=["sd1", "sd2"])


def make_unet2d(settings, seed=0):
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**settings).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def make_video(settings, seed=0, **inflate):
    """A video UNet whose temporal parts do something."""
    video = VideoUNet.from_unet2d(make_unet2d(settings, seed), **inflate).eval()
    with torch.no_grad():
        for name, parameter in video.named_parameters():
            if "_temp." in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return video


def make_input(settings, frames, seed=1):
    """Two clips with timesteps and conditions of their own, 8x4 latents."""
    torch.manual_seed(seed)
    condition = torch.randn(2, 5, settings["cross_attention_dim"])
    return torch.randn(2, 4, frames, 8, 4), torch.tensor([7, 801]), condition


@FAMILIES
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_output_agrees_with_a_plain_implementation(settings, frames, positions):
    video = make_video(settings, frame_positions=positions).double()
    latents, timestep, condition = (part.double() for part in make_input(settings, frames))
    with torch.no_grad():
        sample = video(latents, timestep, condition).sample
    plain = PlainUNet(video, video.config)
    for clip in range(2):
        expected = plain(latents[clip], timestep[clip], condition[clip])
        np.testing.assert_allclose(sample[clip], expected, atol=1e-6, rtol=0)


@FAMILIES
@pytest.mark.parametrize("frames", [1, 5])
def test_with_own_frames_and_norms_it_is_the_2d_unet_frame_by_frame(settings, frames):
    unet = make_unet2d(settings)
    video = VideoUNet.from_unet2d(unet, inflate="own_frame", clip_norm=False).eval()
    latents, timestep, condition = make_input(settings, frames)
    with torch.no_grad():
        sample = video(latents, timestep, condition).sample
        for frame in range(frames):
            expected = unet(latents[:, :, frame], timestep, condition).sample
            torch.testing.assert_close(sample[:, :, frame], expected, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_one_frame_is_the_2d_unet(settings):
    unet = make_unet2d(settings)
    latents, timestep, condition = make_input(settings, 1)
    with torch.no_grad():
        sample = VideoUNet.from_unet2d(unet).eval()(latents, timestep, condition).sample
        expected = unet(latents[:, :, 0], timestep, condition).sample
    torch.testing.assert_close(sample[:, :, 0], expected, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_every_2d_weight_arrives_unchanged_and_only_temporal_parts_are_new(settings):
    unet = make_unet2d(settings)
    video = VideoUNet.from_unet2d(unet)
    flat, inflated = unet.state_dict(), video.state_dict()
    assert all(torch.equal(inflated[name], weight) for name, weight in flat.items())
    blocks = {name.rsplit(".norm3.", 1)[0] for name in flat if ".norm3." in name}
    parts = ("norm_temp.weight", "norm_temp.bias", "attn_temp.to_q.weight", "attn_temp.to_k.weight")
    parts += ("attn_temp.to_v.weight", "attn_temp.to_out.0.weight", "attn_temp.to_out.0.bias")
    assert set(inflated) - set(flat) == {f"{block}.{part}" for block in blocks for part in parts}
    for block in blocks:
        assert not inflated[f"{block}.attn_temp.to_out.0.weight"].any()
        assert not inflated[f"{block}.attn_temp.to_out.0.bias"].any()
        assert inflated[f"{block}.attn_temp.to_q.weight"].any()
    with torch.no_grad():
        video.conv_in.weight.zero_()
    assert unet.conv_in.weight.any()  # a copy, not a view


def test_frames_read_the_two_before_and_clips_do_not_mix():
    video = make_video(SD1, clip_norm=False)
    with torch.no_grad():
        for name, parameter in video.named_parameters():
            if "attn_temp.to_out" in name:
                parameter.zero_()  # leaves sparse-causal attention as the only path between frames
    latents, timestep, condition = make_input(SD1, 6)
    changed = latents.clone()
    changed[1, :, 4] += 1.0
    with torch.no_grad():
        moved = (video(changed, timestep, condition).sample - video(latents, timestep, condition).sample).abs()
    is_moved = moved.amax(dim=(1, 3, 4)) > 1e-4
    assert is_moved.tolist() == [[False] * 6, [False] * 4 + [True, True]]


def test_only_with_frame_positions_does_the_order_of_frames_matter_to_temporal_attention():
    order = torch.tensor([3, 0, 4, 1, 2])
    for positions in (False, True):
        video = make_video(SD1, inflate="own_frame", clip_norm=False, frame_positions=positions)
        latents, timestep, condition = make_input(SD1, 5)
        with torch.no_grad():
            sample = video(latents, timestep, condition).sample[:, :, order]
            shuffled = video(latents[:, :, order], timestep, condition).sample
        assert torch.allclose(sample, shuffled, atol=1e-5) != positions


def test_frame_positions_begin_as_nothing():
    latents, timestep, condition = make_input(SD1, 3)
    with torch.no_grad():
        plain, told = (
            VideoUNet.from_unet2d(make_unet2d(SD1), frame_positions=on).eval()(latents, timestep, condition).sample
            for on in (False, True)
        )
    assert torch.equal(plain, told)


def test_frames_share_as_much_noise_as_asked():
    """Against the covariance itself, from many draws of six numbers."""
    noise = torch.randn(4, 5, 6, 40, 50, generator=torch.Generator().manual_seed(3))
    shared = share_noise(make_video(SD1, noise_share=0.3), noise)
    found = np.cov(shared.transpose(1, 2).transpose(0, 1).flatten(1).double().numpy())
    np.testing.assert_allclose(found, 0.7 * np.eye(6) + 0.3, atol=0.03)
    assert share_noise(make_video(SD1), noise) is noise
    assert torch.equal(share_noise(make_video(SD1, noise_share=0.3), noise[:, :, :1]), noise[:, :, :1])


def test_save_and_load_give_the_same_numbers(tmp_path):
    video = make_video(SD2, clip_norm=False)
    video.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = VideoUNet.from_pretrained(tmp_path)
    assert (loaded.config.inflate, loaded.config.clip_norm) == ("sparse_causal", False)
    latents, timestep, condition = make_input(SD2, 3)
    with torch.no_grad():
        assert torch.equal(loaded(latents, timestep, condition).sample, video(latents, timestep, condition).sample)


def test_a_2d_folder_is_not_silently_inflated(tmp_path):
    make_unet2d(SD1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"missing .*attn_temp\.to_k\.weight"):
        VideoUNet.from_pretrained(tmp_path)


def test_a_copy_counts_its_own_frames():
    video = make_video(SD1)
    latents, timestep, condition = make_input(SD1, 3)
    twin = copy.deepcopy(video)
    with torch.no_grad():
        expected = video(latents, timestep, condition).sample
        video(latents[:, :, :1], timestep, condition)
        assert torch.equal(twin(latents, timestep, condition).sample, expected)


def test_one_timestep_serves_all_clips_and_a_tuple_comes_back_on_request():
    video = make_video(SD1)
    latents, _, condition = make_input(SD1, 3)
    with torch.no_grad():
        expected = video(latents, torch.tensor([42, 42]), condition).sample
        for timestep in (42, torch.tensor(42), torch.tensor([42])):
            assert torch.equal(video(latents, timestep, condition, return_dict=False)[0], expected)


def test_many_pixels_are_attended_in_parts(monkeypatch):
    video = make_video(SD1)
    latents, timestep, condition = make_input(SD1, 3)
    with torch.no_grad():
        expected = video(latents, timestep, condition).sample
        monkeypatch.setattr("mindvideo.models.generators.video_unet.MAX_SEQUENCES", 5)
        torch.testing.assert_close(video(latents, timestep, condition).sample, expected, atol=1e-5, rtol=1e-5)


def test_channels_last_gives_the_same_numbers():
    video = make_video(SD2)
    latents, timestep, condition = make_input(SD2, 3)
    with torch.no_grad():
        expected = video(latents, timestep, condition).sample
        video.to(memory_format=torch.channels_last)
        torch.testing.assert_close(video(latents, timestep, condition).sample, expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_and_bf16_autocast():
    video = make_video(SD1).train()
    latents, timestep, condition = make_input(SD1, 3)
    video(latents, timestep, condition).sample.square().mean().backward()
    plain = {name: parameter.grad for name, parameter in video.named_parameters()}
    assert all(gradient is not None for gradient in plain.values())
    video.zero_grad()
    video.enable_gradient_checkpointing()
    video(latents, timestep, condition).sample.square().mean().backward()
    for name, parameter in video.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])
    with torch.no_grad():
        exact = video(latents, timestep, condition).sample
        with torch.autocast("cpu", torch.bfloat16):
            rough = video(latents, timestep, condition).sample.float()
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_trainable_parts_are_the_attentions():
    names = VideoUNet.trained_parts
    chosen = [name for name, _ in make_video(SD1).named_parameters() if any(part in name for part in names)]
    parts = {name.split(".transformer_blocks.0.")[1].split(".")[0] for name in chosen}
    assert parts == {"attn1", "attn2", "attn_temp", "norm_temp"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(class_embed_type="timestep"), "found class_embed_type='timestep'"),
        (dict(down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")), "block AttnDownBlock2D"),
        (dict(only_cross_attention=True), "only_cross_attention=True"),
    ],
)
def test_unets_of_other_families_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        VideoUNet.from_unet2d(UNet2DConditionModel(**SD1 | change))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda video: video(torch.zeros(2, 4, 8, 4), 1, torch.zeros(2, 5, 11)),
            r"\(B, 4, F, H, W\), found \(2, 4, 8, 4\)",
        ),
        (lambda video: video(torch.zeros(2, 3, 4, 8, 4), 1, torch.zeros(2, 5, 11)), r"\(B, 4, F, H, W\)"),
        (
            lambda video: video(torch.zeros(2, 4, 3, 8, 4), 1, torch.zeros(2, 5, 12)),
            r"\(2, L, 11\), found \(2, 5, 12\)",
        ),
        (lambda video: video(torch.zeros(2, 4, 3, 8, 4), 1, torch.zeros(6, 5, 11)), r"found \(6, 5, 11\)"),
        (lambda video: video(torch.zeros(2, 4, 3, 8, 4), torch.arange(6), torch.zeros(2, 5, 11)), "one timestep or 2"),
        (lambda _: VideoUNet(**SD1, inflate="first_frame"), "found 'first_frame'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    video = make_video(SD1)
    with pytest.raises(ModelError, match=message):
        call(video)
