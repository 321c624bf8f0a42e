"""Films by name: where one lies, what the store calls it, and what else it is called."""

from __future__ import annotations

import fnmatch
import mimetypes
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path, PurePosixPath

from mindvideo.data.video import SUFFIXES, is_film
from mindvideo.errors import DataError
from mindvideo.files import describe_absence, is_there

LONGEST_NAME = 200
"""Most bytes of a film's name in the store, which names a folder."""


def locate_film(stimulus: str, stimuli: Path, table: Path) -> Path | None:
    """Path of an event's film below the stimulus folder; None if it is no film.

    Names may begin with ``stimuli/``, ``/stimuli/``, ``./`` or folders of Windows.
    """
    parts = [part for part in PurePosixPath(stimulus.replace("\\", "/")).parts if part not in ("/", ".")]
    tried = [parts]
    above = [part.casefold() for part in parts[:-1]]
    for folder in ("stimuli", stimuli.name.casefold()):
        if folder in above:
            tried.append(parts[above.index(folder) + 1 :])
    for relative in tried:
        found = None if ".." in relative else _find_path(stimuli, relative)
        if found is not None:
            if absent := describe_absence(stimuli / found):
                raise DataError(f"expected the film {stimulus} of {table} in {stimuli}, {absent}")
            return found if is_film(stimuli / found) else None
    if parts and Path(parts[-1]).suffix.lower() not in SUFFIXES and _is_other_kind(parts[-1]):
        return None
    raise DataError(
        f"expected the film {stimulus} of {table} in {stimuli}, found no such file; "
        "add it or give another folder of stimuli"
    )


def _is_other_kind(name: str) -> bool:
    """Whether a missing file would be a still, a sound or a text, by its ending."""
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith(("image/", "audio/", "text/")) and kind != "image/gif"


def _find_path(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file below a folder, in any Unicode form, or in other capitals if one matches."""
    found = Path()
    for part in parts:
        here = folder / found
        if not (here / part).exists() and not is_there(here / part):
            names = [path.name for path in here.iterdir()] if here.is_dir() else []
            same = [name for name in names if _plain(name) == _plain(part)]
            same = same or [name for name in names if _plain(name).casefold() == _plain(part).casefold()]
            if len(same) != 1:
                return None
            part = same[0]
        found /= part
    return found if is_there(folder / found) else None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def name_films(films: Iterable[Path]) -> dict[Path, str]:
    """A unique name for every film: letters of any script, digits, points and dashes.

    Films whose names would be the same keep their endings, or get a number.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    stems = {film: _plain(film.with_suffix("").as_posix()) for film in films}
    same = Counter(_store_name(stem).lower() for stem in stems.values())
    for film in sorted(stems, key=lambda film: (_store_name(stems[film]) != stems[film], film.as_posix())):
        name = _store_name(stems[film])
        if same[name.lower()] > 1 and list(stems.values()).count(stems[film]) > 1:
            name = _store_name(_plain(film.as_posix()))
        numbered = (name if number == 1 else f"{name}_{number}" for number in count(1))
        names[film] = next(unique for unique in numbered if unique.lower() not in taken)
        taken.add(names[film].lower())
    return names


def _store_name(text: str) -> str:
    """A text with underscores for all but letters, marks, digits, points and dashes."""
    kept = "".join(c if c in ".-" or unicodedata.category(c)[0] in "LMN" else "_" for c in text)
    kept = kept.encode()[-LONGEST_NAME:].decode(errors="ignore")
    return re.sub("_+", "_", kept).strip("._") or "film"


def other_names(films: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """What else captions may call each film: its path, its stem, or that in ASCII."""
    own = {name: name for name in films}
    for name, film in films.items():
        stem = _plain(film.with_suffix("").as_posix())
        for other in (stem, _plain(film.as_posix()), re.sub(r"[^A-Za-z0-9.-]+", "_", stem).strip("._")):
            own[other] = name if own.get(other, name) == name else ""
    return {name: tuple(other for other, of in own.items() if of == name) for name in films}


def is_called(film: Path, name: str, pattern: str) -> bool:
    """Whether a pattern with ``*`` and ``?`` means a film that the store calls ``name``."""
    called = (film.as_posix(), film.name, film.stem, name)
    return any(fnmatch.fnmatchcase(_plain(own), _plain(pattern)) for own in called)
