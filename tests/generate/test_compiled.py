"""The compiled generator: the same clips, one graph for each shape, and a clear word where nothing compiles.

Traced as inductor traces it, then run by torch's own kernels: compiling these takes longer than all other tests here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_sampling import inputs  # noqa: F401  a fixture
from tiny_pipeline import tiny_unet

from mindvideo.config import Reconstruct
from mindvideo.errors import SettingError
from mindvideo.generate.compiled import check_compiling, compile_generator
from mindvideo.generate.sampling import Plan, denoise
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.video_unet import VideoUNet

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def unet() -> Iterator[VideoUNet]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    unet = tiny_unet()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn_temp" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    yield unet
    torch._dynamo.reset()


def test_compiled_samples_are_those_of_the_plain_generator(unet: VideoUNet, inputs: Inputs) -> None:  # noqa: F811
    """Bounds: fp32 1e-4 of the latents' spread, bf16 3 % of it as without compiling; each step's guidance on or off."""
    plan = Plan(4, 3.5, (0.5, 1.0))
    exact = denoise(unet, make_scheduler({}, "ddim"), *inputs, plan)
    compile_generator(unet, "aot_eager")
    found = denoise(unet, make_scheduler({}, "ddim"), *inputs, plan)
    assert float((found - exact).abs().max()) < 1e-4 * float(exact.std())
    again = denoise(unet, make_scheduler({}, "ddim"), inputs[0], inputs[1] + 1, inputs[2], plan)
    assert float((again - exact).abs().max()) > 0.1 * float(
        exact.std()
    )  # another condition is not answered from memory
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # with guidance and without
    assert not torch._dynamo.utils.counters["graph_break"]


def test_compiled_bf16_stays_near_fp32(unet: VideoUNet, inputs: Inputs) -> None:  # noqa: F811
    latents, condition, _ = inputs
    exact = denoise(unet, make_scheduler({}, "dpm++"), latents, condition, None, Plan(3, 1.0))
    compile_generator(unet, "aot_eager")
    rough = denoise(unet, make_scheduler({}, "dpm++"), latents, condition, None, Plan(3, 1.0, is_bf16=True))
    assert 0 < float((rough - exact).square().mean().sqrt()) < 0.03 * float(exact.std())


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(SettingError, match=r"expected reconstruct\.reuse=1 .* found 3"):
        check_compiling(Reconstruct(compile=True, reuse=3), torch.device("cpu"))
    check_compiling(Reconstruct(reuse=3), torch.device("cpu"))
    from torch._inductor import config

    torch._dynamo.reset()
    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        pytest.raises(SettingError, match=r"expected a compiler .*reconstruct\.compile=true.* set it to false"),
    ):
        check_compiling(Reconstruct(compile=True), torch.device("cpu"))
