"""The guard of a move: errors and tests keep a name that survives it, and a lost one is told."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))

from guard import compare, digest_arrays, name_raises, pair_tests, without_chance  # noqa: E402

CODE = """
def first(x):
    if x:
        raise ValueError(f"expected a number, found {x!r}; give "
                         "another")
    raise ValueError("none")

def second(error):
    raise ValueError("none")
    raise
"""


def test_an_error_is_named_by_what_it_says() -> None:
    assert [name for _, name in name_raises(ast.parse(CODE), "some/where.py")] == [
        "ValueError: none", "ValueError: none (2)", "raise in where",
        "ValueError: expected a number, found {}; give another",
    ]  # fmt: skip


def test_an_error_that_is_no_longer_reached_is_told() -> None:
    before = {"A: a": True, "B: b": True, "C: c": False, "D: d": True}
    assert list(compare("raises", before, {"A: a": True, "B: b": False})) == ["no longer reached: B: b", "gone: D: d"]


def test_moved_and_renamed_tests_are_found() -> None:
    old = {"t/a.py::test_one": "1", "t/a.py::test_two": "2", "t/a.py::test_three_sizes": "3", "t/a.py::test_x": "4"}
    new = {"t/a.py::test_one": "9", "t/b.py::test_zwei": "2", "t/b.py::test_three_size": "8"}
    assert pair_tests(old, new) == {
        "t/a.py::test_one": "t/a.py::test_one",
        "t/a.py::test_two": "t/b.py::test_zwei",
        "t/a.py::test_three_sizes": "? t/b.py::test_three_size",
        "t/a.py::test_x": "gone",
    }


def test_lines_lose_what_differs_from_run_to_run(tmp_path: Path) -> None:
    line = f"{tmp_path}/out done in 12 s, peak memory 1.3 GiB, 5 films"
    assert without_chance(line, str(tmp_path)) == "FOLDER/out done in N s, peak memory N GiB, 5 films"


def test_arrays_are_known_by_their_content(tmp_path: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(3, 5)

    def digests() -> dict[str, str]:
        return {name: text for path in sorted(tmp_path.rglob("*")) for name, text in digest_arrays(path, tmp_path)}

    np.savez(tmp_path / "maps.npz", a=values)
    save_file({"b": values}, tmp_path / "model.safetensors")
    zarr.open_group(tmp_path / "store.zarr", mode="w").create_array("c", data=values, chunks=(2, 5))
    (tmp_path / "scores.json").write_text(json.dumps({"x": 1, "where": str(tmp_path)}))
    (tmp_path / "done.json").write_text("{}")
    before = digests()
    assert set(before) == {"maps.npz:a", "model.safetensors:b", "store.zarr/c", "scores.json"}
    assert len({before[name] for name in before if name != "scores.json"}) == 1
    assert before["store.zarr/c"].startswith("float32 (3, 5) ")
    save_file({"b": values + np.float32(1e-6)}, tmp_path / "model.safetensors")
    assert list(compare("arrays", before, digests())) == ["model.safetensors:b"]


@pytest.mark.parametrize(("after", "code"), [({"a": ["1"]}, 0), ({"a": ["2"]}, 1)])
def test_the_command_exits_with_what_it_found(tmp_path: Path, after: dict[str, list[str]], code: int) -> None:
    for name, content in (("old", {"a": ["1"]}), ("new", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cases.json").write_text(json.dumps(content))
    command = [sys.executable, str(ROOT / "tools" / "guard.py"), "diff", str(tmp_path / "old"), str(tmp_path / "new")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code and ("+2" in result.stdout) == bool(code)
