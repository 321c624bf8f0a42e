"""Safe writing: locks, plain words for a full disk, flushed files, folders replaced whole."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mindvideo.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit on the size of files
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextmanager
def disk_errors(path: Path, what: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk or a refused folder into a DataError about writing ``what`` to ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            place = next((folder for folder in (path, *path.parents) if folder.exists()), Path.cwd())
            free = shutil.disk_usage(place).free / 1e6
            needs = "" if needed_bytes is None else f", needs about {needed_bytes / 1e6:,.1f} MB"
            raise DataError(
                f"disk full while writing {what} to {path}{needs}, {free:,.1f} MB are free; "
                "what is there stays marked incomplete: make room and run the command again"
            ) from error
        if error.errno in _REFUSED:
            raise DataError(f"expected a folder that can be written at {path}, found: {error.strerror}") from error
        raise


def is_full(error: Exception) -> bool:
    """Whether an error means a full disk or a quota, which safetensors says in words only."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


@contextmanager
def only_one(file: Path, doing: str) -> Iterator[None]:
    """Hold a lock file, which the death of the process releases too; DataError where another process holds it."""
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
    """Force a folder's files onto the disk."""
    files = folder.rglob("*") if recursive else folder.iterdir()
    for item in [*files, folder]:
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
    """Replace ``folder`` by ``new``; a kill leaves either, the old one perhaps as ``NAME.old``."""
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
