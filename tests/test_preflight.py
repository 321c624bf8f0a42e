"""What a study is refused for before anything runs: the same sentences by ``check`` and by ``run``, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindvideo.config import load_recipe
from mindvideo.errors import SettingError
from mindvideo.evaluate import n_way_top_k
from mindvideo.models.foundation import Foundation
from mindvideo.preflight import refusals

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.size=35"], "data.size to be a multiple of 4 pixels, which one latent of this foundation's VAE covers, "
                           "found 35; give --set data.size=36"),
        (["reconstruct.size=33"], "reconstruct.size to be a multiple of 4 pixels"),
        (["pretrain.enabled=false", "adapt.enabled=false"], "found both disabled; give --set align.start_from=scratch"),
        (["align.batch_size=61"], "align.batch_size of at most 60, the number of training samples, found 61; give --set "
                                  "align.batch_size=60, or fewer"),
        (["pretrain.batch_size=17"], "pretrain.batch_size of at most 16, the number of training samples"),
        (["cotrain.batch_size=90", "data.repeats=separate", "adapt.batch_size=121"], "adapt.batch_size of at most 120"),
        (["baselines=[mindvis]", "baseline.mindvis.batch_size=61"], "baseline.mindvis.batch_size of at most 60"),
        (["align.encoder=convolution_encoder:ConvolutionEncoder"], "give --set align.start_from=scratch"),
        (["evaluate.n_ways=[2,400]"], "distractors are drawn from all but the true clip's 3, found 400"),
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


def test_as_many_ways_as_there_are_distractors_are_allowed(random_kit: Path) -> None:
    """N - 1 distractors of the classes outside the true three: with 400 classes 398 ways go, 399 do not."""
    classes = Foundation(random_kit).class_count("video_classifier")
    most = min(classes, Foundation(random_kit).class_count("image_classifier")) - 2
    for ways, count in ((most, 0), (most + 1, 1)):
        recipe = load_recipe(str(TINY), [f"foundation={random_kit}", f"evaluate.n_ways=[{ways}]"])
        assert len(refusals(recipe)) >= count and (not refusals(recipe)) == (count == 0)
        probabilities = np.full((1, most + 2), 1 / (most + 2))
        if count:
            with pytest.raises(SettingError):
                n_way_top_k(probabilities, np.array([[0, 1, 2]]), ways)
        else:
            n_way_top_k(probabilities, np.array([[0, 1, 2]]), ways)


def test_the_kit_is_refused_for_films_of_a_real_recording(random_kit: Path, tmp_path: Path) -> None:
    real = ["simulate=null", f"data.raw={tmp_path}", "pretrain.enabled=false", "data.captions=blip"]

    def said(*settings: str, last: str | None = None) -> str:
        recipe = load_recipe(str(TINY), [*real, *settings])
        return " ".join(str(error) for error in refusals(recipe, reads_recordings=False, last=last))

    assert "--set kit_on_real_films=true" in said() and "one drawn world" in said(last="align")
    for found in (said("kit_on_real_films=true"), said(f"foundation={random_kit}"), said(last="adapt")):
        assert found == ""
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "settings.json").write_text("{}")
    assert said() == ""  # drawn films, written by simulate
