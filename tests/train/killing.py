"""Stages killed in the middle, each in a process of its own, for tests that go on with them."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from mindvideo.config import Recipe, save_recipe

SCRIPT = """
    import importlib, os, sys
    from pathlib import Path
    import torch
    from mindvideo.config import load_recipe
    from mindvideo.stages import StageContext
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for stage in sys.argv[2:]:
        os.environ["MINDVIDEO_TEST_KILL"] = f"{stage}:3"
        child = os.fork()
        if child == 0:
            recipe = load_recipe(str(folder / "recipe.yaml"))
            importlib.import_module(f"mindvideo.train.{stage}").run(StageContext.of(recipe, folder / stage, stage))
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
"""


def kill_stages(recipe: Recipe, finished: Path, out: Path, *stages: str) -> None:
    """Copies of a finished run, ``out/STAGE``, in which that stage was begun anew and killed after its third step."""
    save_recipe(recipe, out / "recipe.yaml")
    for stage in stages:
        shutil.copytree(finished, out / stage)
        shutil.rmtree(out / stage / stage)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(out), *stages]
    environment = {name: value for name, value in os.environ.items() if name != "MINDVIDEO_TEST_KILL"}
    output = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert output.stdout.split() == ["9"] * len(stages), output.stderr
