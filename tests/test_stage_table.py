"""The runner by itself, with stages that write one small file: what is stale and why, and when the old result goes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mindvideo.config import Recipe, load_recipe, save_recipe
from mindvideo.errors import DataError
from mindvideo.stages import STAGES, StageContext
from mindvideo.study import Study

ALL = [stage.name for stage in STAGES.values() if not stage.optional or stage.name == "simulate"]
ENCODER = '"""Somebody\'s own."""\nfrom torch import nn\n\n\nclass Mine(nn.Module):\n    width = 3\n'


class FolderFoundation:
    """Parts with the content of their files as identity."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def part_identity(self, part: str) -> str:
        place = self.folder / part
        return place.read_text() if place.is_file() else ""


class ToyStages:
    """Stands for every stage's module; fails in the stage ``fails``."""

    fails = ""

    def __init__(self, module: str) -> None:
        pass

    @classmethod
    def run(cls, context: StageContext) -> None:
        name = context.folder.name.removesuffix(".new")
        places = {
            place.partition("/")[2] for stage in STAGES.values() for place in stage.opens if place.startswith(name)
        }
        for folder in (context.folder, *(context.folder / other for other in {*places, *STAGES[name].writes})):
            if folder.suffix == ".jsonl":
                folder.write_text("{}")
                continue
            folder.mkdir(exist_ok=True)
            (folder / "begun.txt").write_text("kept" if (folder / "begun.txt").is_file() else "new")
        if name == cls.fails:
            raise DataError(f"{name} fails")
        (context.folder / "result.json").write_text(json.dumps([context.recipe.seed, context.recipe.align.lr]))


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "kit").mkdir()
    return tmp_path / "kit"


@pytest.fixture
def recipe(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr("mindvideo.study.import_module", ToyStages)
    monkeypatch.setattr("mindvideo.models.foundation.Foundation", FolderFoundation)
    monkeypatch.setattr(Study, "check", lambda self, last=None: None)
    monkeypatch.setattr(ToyStages, "fails", "")
    return load_recipe("demo", [f"foundation={kit}", "align.lr=2e-5"])


@pytest.fixture
def changed(recipe: Recipe, tmp_path: Path) -> Callable[..., Study]:
    """The study of the run folder with settings on top of the recipe."""

    def change(*settings: str) -> Study:
        save_recipe(recipe, tmp_path / "resolved.yaml")
        return Study(load_recipe(str(tmp_path / "resolved.yaml"), list(settings)), tmp_path / "run")

    return change


@pytest.fixture
def run_dir(changed: Callable[..., Study], tmp_path: Path) -> Path:
    assert changed().run(say=lambda line: None) == ALL
    return tmp_path / "run"


def _silent(line: str) -> None:
    pass


def test_every_stage_is_there_and_recorded(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir() if path.is_dir()} == {*ALL, "model"}
    done = json.loads((run_dir / "reconstruct" / "done.json").read_text())
    assert set(done["files"]) == {"reconstruct/begun.txt", "reconstruct/result.json", "model/begun.txt"}
    assert done["files"]["model/begun.txt"][0] == 3


def test_status_says_what_changed(changed: Callable[..., Study], run_dir: Path) -> None:
    assert changed().status() == dict.fromkeys(ALL, "up to date")
    status = changed("align.lr=1e-4").status()
    assert status["align"] == "stale – align.lr 2e-5 → 1e-4"
    assert status["cotrain"] == "stale – align.lr 2e-5 → 1e-4; stage align changed"
    assert status["reconstruct"] == "stale – stage cotrain changed"
    assert {name for name, sentence in status.items() if sentence == "up to date"} == {
        "simulate", "prepare", "pretrain", "adapt", "animate",
    }  # fmt: skip


def test_status_counts_what_it_does_not_name(changed: Callable[..., Study], run_dir: Path) -> None:
    settings = [f"evaluate.{name}={value}" for name, value in (
        ("block_s", 7), ("permutations", 111), ("bootstraps", 222), ("n_ways", "[2, 3]"), ("captions", "false"),
    )]  # fmt: skip
    sentence = changed(*settings, "seed=4", "reconstruct.steps=3").status()["evaluate"]
    assert re.search(r"evaluate\.permutations \d+ → 111; ", sentence) and sentence.endswith("; and 1 more")


def test_status_names_parts_of_the_foundation_and_versions(
    changed: Callable[..., Study], run_dir: Path, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kit / "image_classifier").write_text("another")
    stale = {name: text for name, text in changed().status().items() if text != "up to date"}
    assert stale == {
        "evaluate": "stale – foundation part image_classifier changed",
        "report": "stale – stage evaluate changed",
    }
    (kit / "image_classifier").unlink()
    stage = STAGES["explain"]
    monkeypatch.setitem(STAGES, "explain", type(stage)(**{**vars(stage), "version": 2}))
    stale = {name: text for name, text in changed().status().items() if text != "up to date"}
    assert stale == {"explain": "stale – version 1 → 2", "report": "stale – stage explain changed"}


def test_an_edit_to_an_own_encoder_makes_its_stages_stale(
    changed: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebodys.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    own = ("align.encoder=somebodys:Mine", "align.start_from=scratch")
    changed(*own).run(say=_silent)
    assert changed(*own).status()["align"] == "up to date"
    (tmp_path / "somebodys.py").write_text(ENCODER.replace("3", "4"))
    status = changed(*own).status()
    assert status["align"] == "stale – class somebodys:Mine changed" and status["animate"] == "up to date"


def test_the_old_result_stays_until_the_new_one_is_complete(
    changed: Callable[..., Study], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        path for name in ("align", "reconstruct", "model") for path in (run_dir / name).rglob("*") if path.is_file()
    ]
    before = {path: path.read_bytes() for path in files}
    for fails in ("align", "reconstruct"):
        monkeypatch.setattr(ToyStages, "fails", fails)
        with pytest.raises(DataError, match=f"{fails} fails"):
            changed("align.lr=1e-4").run(say=_silent)
        kept = {
            path: content
            for path, content in before.items()
            if fails == "align" or run_dir / "align" not in path.parents
        }
        assert kept == {path: path.read_bytes() for path in kept}
        assert changed("align.lr=1e-4").status()[fails].endswith("; the new one goes on where it stopped")
    monkeypatch.setattr(ToyStages, "fails", "")
    assert changed("align.lr=1e-4").run(say=_silent) == ["reconstruct", "evaluate", "explain", "report"]
    assert (run_dir / "reconstruct" / "begun.txt").read_text() == "kept"
    assert json.loads((run_dir / "align" / "result.json").read_text())[1] == 1e-4
    assert not [path.name for path in run_dir.iterdir() if path.suffix in (".new", ".old")]


def test_going_back_discards_what_was_begun_with_other_settings(
    changed: Callable[..., Study], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyStages, "fails", "align")
    for lr, found in (("1e-4", "new"), ("1e-3", "new"), ("1e-3", "kept")):
        with pytest.raises(DataError, match="align fails"):
            changed(f"align.lr={lr}").run(say=_silent)
        assert (run_dir / "align.new" / "begun.txt").read_text() == found
    assert changed().run(say=_silent) == []
    assert not (run_dir / "align.new").exists()


@pytest.mark.parametrize(
    ("file", "stage", "settings"),
    [
        ("prepare/store.zarr/begun.txt", "prepare", "align.lr=1e-4"),
        ("reconstruct/result.json", "reconstruct", "evaluate.permutations=111"),
        ("cotrain/unet/begun.txt", "cotrain", "reconstruct.steps=2"),
        ("align/metrics.jsonl", "align", "baseline.gan.width=9"),
    ],
)
def test_damage_is_told_before_it_is_read_and_the_advice_works(
    changed: Callable[..., Study], run_dir: Path, file: str, stage: str, settings: str
) -> None:
    content = (run_dir / file).read_bytes()
    (run_dir / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert changed().run(say=_silent) == []  # what nobody reads is not compared
    with pytest.raises(
        DataError, match=rf"{file} as the stage '{stage}' wrote it, found other content; remove the folder"
    ):
        changed(settings).run(say=_silent)
    (run_dir / file).unlink()
    said: list[str] = []
    changed().run(say=said.append)
    lost = f"damaged – {run_dir / file}: no such file; remove the folder {run_dir / stage} to have it made anew"
    assert changed().status()[stage] == lost and f"{stage}: {lost}" in said
    shutil.rmtree(run_dir / stage)
    assert stage in changed(settings).run(say=_silent)
    assert changed(settings).status() == dict.fromkeys(ALL, "up to date")


def test_what_was_just_written_is_not_read_again(
    changed: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    monkeypatch.setattr("mindvideo.study.require_intact", lambda folder, stage, below: compared.append(below))
    changed().run(say=_silent)
    assert compared == []
    changed("evaluate.permutations=111").run(say=_silent)
    logs = [f"{name}/metrics.jsonl" for name in ALL if STAGES[name].trains]
    assert compared == ["simulate/truth", "prepare/store.zarr", "reconstruct/", "explain/", *logs]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"hash": 3}'])
def test_a_damaged_note_makes_its_stage_anew(changed: Callable[..., Study], run_dir: Path, content: bytes) -> None:
    (run_dir / "evaluate" / "done.json").write_bytes(content)
    (run_dir / "evaluate" / "started.json").write_bytes(content)
    assert changed().run(say=_silent) == ["evaluate"]


def test_status_on_the_command_line(
    changed: Callable[..., Study], run_dir: Path, cli: Callable[..., tuple[int, str]]
) -> None:
    code, text = cli("status", run_dir, "--set", "align.lr=1e-4")
    assert code == 0 and "align: stale – align.lr 2e-5 → 1e-4\n" in text and "animate: up to date\n" in text
    code, text = cli("status", run_dir / "nowhere")
    assert code == 1 and "recipe.yaml" in text
