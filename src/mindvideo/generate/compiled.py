"""The generator through ``torch.compile``: the same arithmetic in fewer, fused kernels, after minutes of compiling."""

from __future__ import annotations

import torch

from mindvideo.config import Reconstruct
from mindvideo.errors import SettingError
from mindvideo.models.video_unet import VideoUNet


def check_compiling(settings: Reconstruct, device: torch.device) -> None:
    """Compile one line, where the recipe asks for compiling, to see that it can be done.

    Raises
    ------
    SettingError
        Where no compiler is found, or together with ``reuse``, which changes what is computed from step to step.
    """
    if not settings.compile:
        return
    if settings.reuse > 1:
        raise SettingError(
            f"expected reconstruct.reuse=1 with reconstruct.compile=true, found {settings.reuse}: a compiled generator "
            "runs whole at every step; set one of the two back"
        )
    try:
        torch.compile(_trial)(torch.ones(16, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SettingError(
            f"expected a compiler for reconstruct.compile=true, found none that works ({reason[:200]}); install g++, "
            "or triton on a GPU, or set it to false"
        ) from None


def compile_generator(unet: VideoUNet, backend: str = "inductor") -> None:
    """Let every later call of ``unet`` run compiled, once for each shape that comes; it compiles as one graph or fails.

    Parameters
    ----------
    unet : VideoUNet
    backend : str
        One of torch.compile's; "aot_eager" traces as "inductor" does, and then runs torch's own kernels.
    """
    unet.compile(backend=backend, fullgraph=True, dynamic=False)


def _trial(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.sin() + 1
