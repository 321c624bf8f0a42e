"""Finding files as people have them, and writing whole: one writer, nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mindvideo.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit on the size of files
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_POINTER_BYTES = 1024
_POINTERS = {b"version https://git-lfs": "git lfs pull", b"/annex/objects/": "datalad get"}


def walk_files(folder: Path, hidden: bool = False, _above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below a folder, in order of its path; links are followed, but not in circles.

    A link to nothing counts as a file whose content is missing (`describe_absence`). What begins with a
    point (``._copy.nii`` of macOS, ``.git``) is passed over unless ``hidden``.
    """
    real = os.path.realpath(folder)
    if real in _above or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if hidden or not path.name.startswith("."):
            if path.is_dir():
                yield from walk_files(path, hidden, _above | {real})
            elif is_there(path):
                yield path


def list_files(place: Path | None, without: Path | None = None) -> list[list[Any]]:
    """Name, size and time of a file, or of each file below a folder.

    Files below the folder ``without`` are passed over.
    """
    if place is None or not place.exists():
        return []
    files = [place] if place.is_file() else list(walk_files(place))
    if without is not None:
        real, other = place.resolve(), without.resolve()
        files = [path for path in files if other not in (real / path.relative_to(place)).parents]
    found = [(path, path.stat() if path.exists() else path.lstat()) for path in files]
    return [[str(path.relative_to(place)), state.st_size, state.st_mtime_ns] for path, state in found]


def list_contents(place: Path | None) -> list[list[Any]]:
    """`list_files`, but with `digest_file` in the time's place: a copy counts as the same."""
    if place is None:
        return []
    return [[name, size, digest_file(place / name)] for name, size, _ in list_files(place)]


def unless_copied(path: Path, state: list[int], known: Any) -> list[int]:
    """Size and time of a file; those ``known`` if it is a copy: only the time differs."""
    if isinstance(known, list) and len(known) == 3 and known[0] == state[0] and known[1] != state[1]:
        return known[:2] if known[2] == digest_file(path) else state
    return state


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of what `add_content` takes of a file; empty for a link to nothing."""
    digest = hashlib.sha256()
    if path.is_file():
        add_content(digest, path)
        return digest.hexdigest()
    return ""


def add_content(digest: Any, path: Path) -> None:
    """Hash a file: all of it, or of a large one header, end and a sixteenth between."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        if size <= 2**26:
            digest.update(handle.read())
            return
        for start in (*range(0, size, 2**24), size - 2**20):
            handle.seek(start)
            digest.update(handle.read(2**20))


def is_there(path: Path) -> bool:
    """Whether there is a file, or a link that promises one."""
    return path.is_file() or path.is_symlink()


def describe_absence(path: Path) -> str:
    """What is found in a file's place, and what to do; empty for a file with content.

    For content that was not fetched, git-annex keeps a link or a short text, and git-lfs a short text.
    """
    if path.is_symlink() and not path.exists():
        if "annex" in os.readlink(path):
            return f"found a link whose content was not fetched; run: datalad get '{path}' (or: git annex get)"
        return f"found a link to {os.readlink(path)}, which is not there; restore what it points to"
    if not path.is_file():
        return "found no such file; add it"
    if path.stat().st_size <= _POINTER_BYTES:
        content = path.read_bytes()
        for mark, command in _POINTERS.items():
            if content.startswith(mark):
                return f"found a pointer to content that was not fetched; run: {command} ('{path}')"
    return ""


def require_content(path: Path, what: str) -> None:
    """Raise DataError for a file whose content is not there; ``what`` says what was expected."""
    if absence := describe_absence(path):
        raise DataError(f"expected {what} at {path}, {absence}")


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file; DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"expected a readable file at {path}, found: {error.strerror or error}") from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place to write a file; renamed to ``path`` once flushed, removed if writing fails."""
    place = path.with_name(path.name + ".tmp")
    try:
        yield place
        with place.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(place, path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader never sees half a file."""
    with beside(path) as place:
        place.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """`write_text` of JSON; a number that is not finite is an error."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


@contextmanager
def disk_errors(path: Path, what: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk into a DataError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors says in words only that a disk is full
        number = getattr(error, "errno", None)
        if number in FULL or any(os.strerror(number) in str(error) for number in FULL):
            place = next((folder for folder in (path, *path.parents) if folder.exists()), Path.cwd())
            free = shutil.disk_usage(place).free / 1e6
            needs = "" if needed_bytes is None else f", needs about {needed_bytes / 1e6:,.1f} MB"
            raise DataError(
                f"disk full while writing {what} to {path}{needs}, {free:,.1f} MB are free; "
                "what is there stays marked incomplete: make room and run the command again"
            ) from error
        raise


@contextmanager
def only_one(file: Path, doing: str) -> Iterator[None]:
    """Hold a lock file, until the process dies at the latest; DataError if another holds it."""
    with disk_errors(file, "the lock"):
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = file.open("w")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                raise DataError(
                    f"expected to be the only process {doing}, found another at work; wait until it ends, or give another --out"
                ) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle.fileno()), file.stat()):
                    break
            handle.close()  # the holder before removed the file between our open and lock
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        handle.close()


def flush_folder(folder: Path, recursive: bool = True) -> None:
    """Force a folder's files onto the disk, except linked ones, which are there since they were made."""
    files = folder.rglob("*") if recursive else folder.iterdir()
    for item in [*files, folder]:
        if item.is_file() and item.stat().st_nlink > 1:
            continue
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def beside_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that replaces ``folder`` at the end, and is removed on failure."""
    place = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
        flush_folder(place)
        replace_folder(place, folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Replace ``folder`` by ``new``; a kill leaves either, perhaps as ``NAME.old``."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def link_file(source: str | Path, place: str | Path) -> None:
    """A hard link to a file; a copy across file systems, or of logs, which grow."""
    if not str(source).endswith(".jsonl"):
        with suppress(OSError):
            os.link(source, place)
            return
    shutil.copy2(source, place)


def link_folder(source: Path, folder: Path) -> None:
    """Replace ``folder`` by one with the files of ``source``, see `link_file`."""
    with disk_errors(folder, "the copy"), beside_folder(folder) as place:
        shutil.copytree(source, place, copy_function=link_file, dirs_exist_ok=True)
