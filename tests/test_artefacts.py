"""What a stage wrote is compared with its record: every kind of damage is found, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mindvideo.artefacts import find_damage, is_intact, read_note, record_files, require_intact
from mindvideo.errors import DataError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name, content in {
        "align/model/weights.safetensors": b"weights" * 11, "align/state/tensors.safetensors": b"not read later",
        "align/started.json": b"{}", "model/unet/config.json": b"{}", "align/clips.zarr/c/0/1": bytes(range(97)),
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    record = record_files(tmp_path, [tmp_path / "align", tmp_path / "model"])
    (tmp_path / "align" / "done.json").write_text(json.dumps({"files": record}))
    return tmp_path


def test_record_has_size_and_sha256_of_what_is_read_later(run_dir: Path) -> None:
    record = record_files(run_dir, [run_dir / "align", run_dir / "model"])
    assert record == {
        "align/clips.zarr/c/0/1": [97, hashlib.sha256(bytes(range(97))).hexdigest()],
        "align/model/weights.safetensors": [77, hashlib.sha256(b"weights" * 11).hexdigest()],
        "model/unet/config.json": [2, hashlib.sha256(b"{}").hexdigest()],
    }


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[41] ^= 4
    path.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), "no such file"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:40]), "40 bytes in place of 97"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes in place of 97"),
    "flipped": (_flip, "other content"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_found_and_the_stage_is_named(run_dir: Path, kind: str) -> None:
    require_intact(run_dir, "align")
    damage, words = DAMAGES[kind]
    damage(run_dir / "align" / "clips.zarr" / "c" / "0" / "1")
    with pytest.raises(
        DataError, match=rf"c/0/1 as the stage 'align' wrote it, found {words}; remove the folder .*align"
    ):
        require_intact(run_dir, "align")
    require_intact(run_dir, "align", below="model/")
    record = read_note(run_dir / "align" / "done.json")["files"]
    assert not is_intact(run_dir, record)
    assert (find_damage(run_dir, record, whole=False) is None) == (kind == "flipped")


def test_checkpoints_and_notes_may_change(run_dir: Path) -> None:
    for name in ("align/state/tensors.safetensors", "align/started.json"):
        (run_dir / name).unlink()
    require_intact(run_dir, "align")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"files": {"a": 3}}', b'{"files": 7}'])
def test_a_damaged_note_is_no_traceback(run_dir: Path, content: bytes) -> None:
    note = run_dir / "align" / "done.json"
    note.write_bytes(content)
    record = read_note(note).get("files")
    assert not is_intact(run_dir, record)
    if record is not None:
        with pytest.raises(DataError, match=r"done\.json .* a damaged record"):
            require_intact(run_dir, "align")
