"""A whole released folder from the command line to a pipeline that runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from released_layout import UNET, encoder_weights, save_part, unet_weights
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from mindvideo import MindVideoPipeline
from mindvideo.errors import ModelError
from mindvideo.models.released import VAE_ATTENTION

VAE = dict(
    block_out_channels=[4, 8], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    layers_per_block=1, latent_channels=4, norm_num_groups=2, scaling_factor=0.18215, sample_size=16,
)  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The released layout: pickles, 3-D block names, the VAE's old attention names, class names of another project."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).eval()
    old, names = {}, {new: name for name, new in VAE_ATTENTION.items()}
    for name, weight in vae.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        new = next((key for key in names if ".attentions." in name and stem.endswith(f".{key}")), None)
        old[f"{stem.removesuffix(new)}{names[new]}.{leaf}" if new else name] = weight
    assert sum(".proj_attn." in name for name in old) == 4
    save_part(folder / "vae", old, VAE)
    save_part(folder / "unet", unet_weights(), {**UNET, "_class_name": "UNet3DConditionModel"})
    save_part(folder / "fmri_encoder", {"model": encoder_weights()}, {"num_heads": 3, "num_voxels": 22}, "model.pth")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "MindVideoPipeline", "vae": ["a", "B"]}))
    return folder, vae


def test_a_released_folder_becomes_a_pipeline(release, cli, tmp_path):
    folder, vae = release
    code, text = cli("convert", folder, tmp_path / "out")
    assert code == 0, text
    assert "a whole MindVideoPipeline" in text and "known to be absent: the mean training fMRI" in " ".join(
        text.split()
    )
    assert not list((tmp_path / "out").rglob("*.bin")) and not list((tmp_path / "out").rglob("*.pth"))
    pipe = MindVideoPipeline.from_pretrained(tmp_path / "out")
    latents = torch.randn(1, 4, 3, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents[0].transpose(0, 1) / 0.18215).sample / 2 + 0.5
    np.testing.assert_allclose(pipe.decode(latents)[0], expected.clamp(0, 1).permute(0, 2, 3, 1), atol=1e-6)
    assert pipe.latent_shape(pipe.config.num_frames) == (4, 6, 128, 128)  # the paper's 6 frames of 256 pixels
    fmri, sizes = torch.randn(1, 2, 22), {"num_frames": 3, "height": 16, "width": 16, "num_inference_steps": 2}
    frames = pipe(fmri, negative=fmri[0].numpy(), generator=torch.Generator().manual_seed(1), **sizes).frames
    assert frames.shape == (1, 3, 16, 16, 3)
    with pytest.raises(
        ModelError, match=r"empty caption's tokens .* convert the release again with --foundation FOLDER"
    ):
        pipe(fmri, negative="null", **sizes)
    code, text = cli("convert", folder, tmp_path / "out")
    assert code == 1 and "expected a new folder" in text


def test_the_null_condition_comes_from_the_foundation_that_is_named(release, cli, tmp_path, random_kit):
    """The advice of the refusal above, followed: the empty caption through a text encoder of the same width."""
    kit = tmp_path / "kit"
    shutil.copytree(random_kit / "tokenizer", kit / "tokenizer")
    shutil.copytree(random_kit / "unet", kit / "unet")
    words = len(CLIPTokenizer.from_pretrained(kit / "tokenizer"))
    torch.manual_seed(3)
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=words, hidden_size=10, intermediate_size=14, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=7, projection_dim=10)
    ).eval()  # fmt: skip
    text.save_pretrained(kit / "text_encoder")
    code, said = cli("convert", release[0], tmp_path / "out", "--foundation", kit)
    assert code == 0, said
    pipe = MindVideoPipeline.from_pretrained(tmp_path / "out")
    start, end = (pipe_tokens := CLIPTokenizer.from_pretrained(kit / "tokenizer"))("").input_ids
    row = torch.tensor([[start, end, *[pipe_tokens.pad_token_id] * 5]])
    with torch.no_grad():
        torch.testing.assert_close(pipe.null_condition, text(row).last_hidden_state[0])


def test_a_release_that_is_not_whole_leaves_nothing_behind(release, cli, tmp_path):
    folder, _ = release
    broken = tmp_path / "release"
    broken.mkdir()
    for part in ("fmri_encoder", "vae"):
        (broken / part).symlink_to(folder / part)
    code, text = cli("convert", broken, tmp_path / "parts")
    assert code == 0 and "no whole pipeline: missing unet" in text
    (broken / "unet").symlink_to(folder / "vae")
    code, text = cli("convert", broken, tmp_path / "out")
    assert code == 1 and "expected the weights of VideoUNet" in text and "Traceback" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "release"]
    code, text = cli("convert", tmp_path / "nowhere", tmp_path / "out")
    assert code == 1 and "expected a released folder or checkpoint" in text
