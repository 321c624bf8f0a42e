"""What a study is refused for before anything runs: the same sentences by ``check`` and by ``run``, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.size=35"], "data.size to be a multiple of 4 pixels, which one latent of this foundation's VAE covers, "
                           "found 35; give --set data.size=36"),
        (["reconstruct.size=33"], "reconstruct.size to be a multiple of 4 pixels"),
        (["pretrain.enabled=false", "adapt.enabled=false"], "found both disabled; give --set align.start_from=scratch"),
        (["align.encoder=convolution_encoder:ConvolutionEncoder"], "give --set align.start_from=scratch"),
    ],
)  # fmt: skip
def test_check_and_run_refuse_alike(
    settings: list[str], said: str, cli: Callable[..., tuple[int, str]], random_kit: Path, tmp_path: Path
) -> None:
    given = [word for setting in (f"foundation={random_kit}", *settings) for word in ("--set", setting)]
    for command in ("check", "run"):
        code, text = cli(command, TINY, "--out", tmp_path / "run", *given)
        assert code == 1 and said in " ".join(text.split()), text
    assert not (tmp_path / "run").exists()
