"""What must not be lost while the code is moved: record it before, record it after, and read what differs.

    python tools/guard.py record OLD --cases FOLDER     # at the old head; FOLDER holds 'run' and one CASE.py each
    python tools/guard.py record NEW --cases FOLDER     # at the new one
    python tools/guard.py diff OLD NEW

A record is a folder of four JSON files: ``cases`` (what every case printed), ``arrays`` (a digest of every array, tensor
and JSON file of a tiny study), ``raises`` (every ``raise`` of the package, and whether the tests reach it) and ``tests``
(every test, with a digest of its code, so that a renamed or moved one is found again). Run it from the repository's root.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "mindvideo"
PARTS = ("cases", "arrays", "raises", "tests")
VOLATILE = ("done.json", "started.json", "metrics.jsonl", "files.json")
"""Files of a run that hold times, or digests of those that do."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


def environment(**more: str) -> dict[str, str]:
    """This environment, with the package of this tree and one thread."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    known = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **known, **more}


# --- cases ---


def record_cases(folder: Path) -> dict[str, list[str]]:
    """What every case prints, line by line, without what differs from run to run."""
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        with tempfile.TemporaryDirectory() as place:
            result = subprocess.run(
                [folder / "run", path.stem, place], capture_output=True, text=True, env=environment(), check=False
            )
            found[path.stem] = [without_chance(line, place) for line in (result.stdout + result.stderr).splitlines()]
        print(f"case {path.stem}", flush=True)
    return found


def without_chance(line: str, place: str) -> str:
    """A line without the folder it was made in, seconds, memory, process numbers and addresses."""
    line = line.replace(os.path.realpath(place), "FOLDER").replace(place, "FOLDER").replace(str(ROOT), "ROOT")
    line = re.sub(r"/tmp/[\w./-]+", "TEMPORARY", line)
    line = re.sub(r"\d+(\.\d+)? (s|ms|GiB|MiB|MB|GB)\b", r"N \2", line)
    return re.sub(r"0x[0-9a-f]+|\bpid \d+", "N", line)


# --- arrays ---


def record_arrays() -> dict[str, str]:
    """Run the tiny study with a foundation of random weights, and digest everything in it."""
    with tempfile.TemporaryDirectory() as place:
        kit, run_dir = Path(place) / "kit", Path(place) / "run"
        make = (
            "import sys; from pathlib import Path; sys.path[:0] = ['tests', 'tools']; "
            f"from conftest import build_kit; build_kit(Path({str(kit)!r}), 'test', seed=0)"
        )
        subprocess.run([sys.executable, "-c", make], check=True, env=environment(), cwd=ROOT)
        study = ["-m", "mindvideo.cli", "run", str(ROOT / "tests" / "tiny.yaml"), "--set", f"foundation={kit}"]
        subprocess.run([sys.executable, *study, "--out", str(run_dir)], check=True, env=environment(), cwd=ROOT)
        return {name: digest for path in sorted(run_dir.rglob("*")) for name, digest in digest_arrays(path, run_dir)}


def digest_arrays(path: Path, base: Path) -> Iterator[tuple[str, str]]:
    """Name and digest of each array in a file of a run; of JSON, of its content."""
    import numpy as np
    import zarr
    from safetensors.numpy import load_file

    name = path.relative_to(base).as_posix()
    if path.name in VOLATILE or not path.is_file() or "state" in path.parts:
        return
    if path.name == "zarr.json":
        if json.loads(path.read_text())["node_type"] == "array":
            yield path.parent.relative_to(base).as_posix(), digest_array(zarr.open_array(path.parent, mode="r")[...])
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            yield from ((f"{name}:{key}", digest_array(arrays[key])) for key in arrays.files)
    elif path.suffix == ".safetensors":
        yield from ((f"{name}:{key}", digest_array(array)) for key, array in load_file(path).items())
    elif path.suffix == ".json":
        content = json.dumps(json.loads(path.read_text()), sort_keys=True).replace(str(base), "RUN")
        yield name, hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_array(array: Any) -> str:
    """Type, shape and content of an array."""
    import numpy as np

    whole = np.ascontiguousarray(array)
    return f"{whole.dtype} {whole.shape} {hashlib.sha256(whole.tobytes()).hexdigest()[:16]}"


# --- raises ---

_HOOK = """
import ast, importlib.machinery, os, sys
sys.path.insert(0, {tools!r})
from guard import name_raises

class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        path = self.get_filename(fullname)
        if not path.startswith({package!r}):
            return super().get_code(fullname)
        tree = ast.parse(self.get_data(path))
        return compile(ast.fix_missing_locations(Marks(dict(name_raises(tree, path))).visit(tree)), path, "exec")

class Marks(ast.NodeTransformer):
    def __init__(self, names):
        self.names = names
    def visit_Raise(self, node):
        mark = ast.parse(f"__import__('sitecustomize').reached({{self.names[node]!r}})").body[0]
        return [ast.copy_location(mark, node), node]

seen = set()
def reached(name):
    if name not in seen:
        seen.add(name)
        with open(os.path.join({hits!r}, str(os.getpid())), "a") as handle:
            handle.write(name + "\\n")

details = (Loader, importlib.machinery.SOURCE_SUFFIXES)
sys.path_hooks.insert(0, importlib.machinery.FileFinder.path_hook(
    (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES), details,
    (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES)))
sys.path_importer_cache.clear()
"""


def record_raises(place: str) -> dict[str, bool]:
    """Every ``raise`` of the package by what it says, and whether the tests in ``place`` reach it."""
    with tempfile.TemporaryDirectory() as folder:
        hits = Path(folder) / "hits"
        hits.mkdir()
        hook = _HOOK.format(tools=str(Path(__file__).parent), package=str(PACKAGE), hits=str(hits))
        (Path(folder) / "sitecustomize.py").write_text(hook)
        paths = os.pathsep.join([folder, environment()["PYTHONPATH"]])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *place.split()]
        subprocess.run(command, cwd=ROOT, env={**environment(), "PYTHONPATH": paths}, check=False)
        found = {name for file in hits.iterdir() for name in file.read_text().splitlines()}
    known = [
        name for path in sorted(PACKAGE.rglob("*.py")) for _, name in name_raises(ast.parse(path.read_text()), path)
    ]
    return {name: name in found for name in known}


def name_raises(tree: ast.Module, path: str | Path) -> list[tuple[ast.Raise, str]]:
    """Each ``raise`` with a name that survives a move: its exception and the words it says, numbered where they repeat."""
    found, count = [], Counter[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            words = " ".join("".join(_words(node)).split())
            call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            kind = ast.unparse(call) if call is not None else "raise"
            name = f"{kind}: {words[:160]}" if words else f"{kind} in {Path(path).stem}"
            count[name] += 1
            found.append((node, name if count[name] == 1 else f"{name} ({count[name]})"))
    return found


def _words(node: ast.AST) -> Iterator[str]:
    """The constant text of an error, with {} for what is filled in."""
    if isinstance(node, ast.FormattedValue):
        yield "{}"
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _words(child)


# --- tests ---


def record_tests() -> dict[str, str]:
    """Every test function or method, ``FILE::NAME``, with a digest of its code."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                body = ast.dump(ast.Module(node.body, []))
                found[f"{path.relative_to(ROOT)}::{node.name}"] = hashlib.sha256(body.encode()).hexdigest()[:16]
    return found


def pair_tests(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """For each old test the new one: of the same id, of the same code, of the same name, or of the nearest name (``?``)."""
    by_code = {digest: name for name, digest in new.items()}
    by_name = {name.rpartition("::")[2]: name for name in new}
    free = sorted(set(new) - set(old))
    table = {}
    for name, digest in old.items():
        leaf = name.rpartition("::")[2]
        near = difflib.get_close_matches(leaf, [one.rpartition("::")[2] for one in free], n=1, cutoff=0.75)
        found = name if name in new else by_code.get(digest) or by_name.get(leaf)
        table[name] = found or (f"? {by_name[near[0]]}" if near else "gone")
    return table


# --- commands ---


@app.command()
def record(
    out: Path,
    cases: Annotated[Path | None, typer.Option(help="folder of cases; without it they are left out")] = None,
    parts: Annotated[str, typer.Option(help="which parts, with commas")] = ",".join(PARTS),
    tests: Annotated[str, typer.Option(help="what pytest is given for the raises")] = "tests",
) -> None:
    """Write what the software does now to the folder OUT."""
    out.mkdir(parents=True, exist_ok=True)
    makers = {
        "cases": lambda: record_cases(cases.resolve()) if cases else None,
        "arrays": record_arrays,
        "raises": lambda: record_raises(tests),
        "tests": record_tests,
    }
    for part in parts.split(","):
        content = makers[part]()
        if content is not None:
            (out / f"{part}.json").write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
            print(f"{part}: {len(content)} in {out / part}.json", flush=True)


@app.command()
def diff(old: Path, new: Path) -> None:
    """Print what differs between two records; exits with 1 where something was lost."""
    lost = 0
    for part in PARTS:
        if not all((folder / f"{part}.json").is_file() for folder in (old, new)):
            continue
        before, after = (json.loads((folder / f"{part}.json").read_text()) for folder in (old, new))
        lines = list(compare(part, before, after))
        print(f"== {part}: {len(before)} before, {len(after)} after, {len(lines)} differ")
        print("\n".join(lines))
        lost += len(lines)
    raise typer.Exit(int(lost > 0))


def compare(part: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """One line (for a case a diff) for each entry that differs."""
    if part == "tests":
        yield from (f"{name} -> {found}" for name, found in pair_tests(before, after).items() if found != name)
    elif part == "raises":
        for name in (name for name, reached in before.items() if reached and not after.get(name)):
            yield f"{'no longer reached' if name in after else 'gone'}: {name}"
    else:
        for name in sorted(set(before) | set(after)):
            if before.get(name) != after.get(name):
                yield name
                if part == "cases":
                    yield from difflib.unified_diff(before.get(name, []), after.get(name, []), lineterm="", n=0)


if __name__ == "__main__":
    app()
