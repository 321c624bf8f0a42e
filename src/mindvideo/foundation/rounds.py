"""The rounds in which a part was trained: each with a schedule of its own, from the weights that the last one saved.

A part's ``made.json`` says which rounds ended. The first keeps its state and curves beside it, round 2 in ``round2``, and
so on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mindvideo.config import Optimise
from mindvideo.config.recipe import explain
from mindvideo.data.disk import write_text
from mindvideo.errors import ModelError, SettingError
from mindvideo.foundation.pool import check_note
from mindvideo.train.loop import step_seed


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds that ended, first to last, as ``folder/made.json`` has them.

    Parameters
    ----------
    folder : Path
        Where the part keeps its states and curves.

    Returns
    -------
    list of dict
        ``recipe``, ``seed``, ``clips`` and ``settings`` of each; ``changed`` where settings were given beside the
        recipe's, and ``note`` and ``made_with`` where a person wrote them. Empty for a part that was not trained.
    """
    path = folder / "made.json"
    if not path.is_file():
        return []
    made: dict[str, Any] = json.loads(path.read_text())
    made.pop("part", None)
    return made.get("rounds", [made])  # files of before there were rounds hold what is now the entry of one


def write_rounds(folder: Path, rounds: list[dict[str, Any]]) -> None:
    """Write ``folder/made.json``; never half of it."""
    write_text(folder / "made.json", json.dumps({"part": folder.name, "rounds": rounds}, indent=2))


def round_folder(folder: Path, number: int) -> Path:
    """Where round ``number`` keeps its state and curves."""
    return folder if number == 1 else folder / f"round{number}"


def round_seed(seed: int, place: int, number: int) -> int:
    """Seed of a round of the part at ``place`` in the order of training: no two rounds draw the same numbers."""
    first = seed * 1000 + place
    return first if number == 1 else step_seed(first, number)


def round_settings(settings: Optimise, changed: dict[str, Any], where: str) -> Optimise:
    """The recipe's settings of a part with those a user gave; SettingError for a value that cannot be."""
    try:
        return Optimise.model_validate({**settings.model_dump(), **changed})
    except ValidationError as error:
        raise explain(error, where) from None


def check_turn(folder: Path, rounds: list[dict[str, Any]], number: int) -> None:
    """Refuse a round whose predecessor did not end."""
    if number < 1:
        raise SettingError(f"expected a round from 1 on, found {number}")
    if number > len(rounds) + 1:
        found = f"{len(rounds)} at {folder / 'made.json'}" if rounds else f"none: no file {folder / 'made.json'}"
        raise ModelError(
            f"expected {number - 1} finished round{'s' if number > 2 else ''} of '{folder.name}' before round {number}, "
            f"found {found}; train round {len(rounds) + 1} first"
        )


def check_like_first(folder: Path, first: dict[str, Any], recipe: str, seed: int) -> None:
    """Refuse a later round with another recipe or seed than the rounds before: they share films."""
    if (recipe, seed) != (first["recipe"], first["seed"]):
        raise ModelError(
            f"expected recipe {first['recipe']} and seed {first['seed']}, which {folder} was begun with, found recipe "
            f"{recipe} and seed {seed}; leave both out, a later round takes those of the first"
        )


def check_ended(folder: Path, number: int, rounds: list[dict[str, Any]], begun: dict[str, Any]) -> None:
    """Refuse to ask for a round that ended, with another recipe, seed or settings than it had."""
    wanted, found = _flat(begun), _flat(rounds[number - 1])
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise ModelError(
            f"expected round {number} of {folder} to be made with "
            f"{', '.join(f'{name} {wanted[name]}' for name in differing)}, found that it ended with "
            f"{', '.join(f'{name} {found.get(name)}' for name in differing)}; go on with round {len(rounds) + 1}, or "
            "give another place for the kit"
        )


def check_begun(folder: Path, begun: dict[str, Any]) -> None:
    """Refuse a round whose state in ``folder`` was begun with another recipe, seed or settings than those in ``begun``."""
    if (folder / "state").is_dir() or (folder / "state.old").is_dir():
        note = folder / "begun.json"
        check_note(folder, _flat(begun), _flat(json.loads(note.read_text())) if note.is_file() else None)


def note_begun(folder: Path, begun: dict[str, Any]) -> None:
    """Note what a round is trained with beside its state."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "begun.json", json.dumps(begun))


def _flat(note: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": note["recipe"], "seed": note["seed"], **note["settings"]}
