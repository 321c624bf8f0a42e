"""A run's pipeline as a folder for the Hugging Face hub: weights and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mindvideo.artefacts import require_intact
from mindvideo.config import Recipe
from mindvideo.data.store import Store, open_stores
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.tables import brief_rows, read_scores
from mindvideo.files import beside_folder
from mindvideo.report.wording import join_words
from mindvideo.stages import STAGES
from mindvideo.study import Study

_CARD = """\
---
license: {licence}
library_name: diffusers
tags: [fmri, brain-decoding, video]
---

# {name}

A `MindVideoPipeline` of mindvideo {version}: windows of fMRI scans to clips.

## Trained on

- {recordings}
- {trained}
- frozen parts and the generator it started from: {base}

## Scores

On {n_windows} test windows, beside the same generator without this brain's signal. P by permuting blocks of windows.

{table}

A score says something about the brain where it is better than `shuffled` with P < .05, and nothing where it is not.

## What it must not be used for

- On any person who did not agree to being decoded. It was fitted to {whom} and does not work on anybody else{maps}; its weights and
  the list of its voxels are {whose} data.
- To judge truthfulness, for hiring, insurance, policing, courts or war, or to diagnose anyone.
- As a record of what somebody saw: the generator draws something plausible for any input, noise included.
"""


def export_model(run_dir: Path, out: Path, licence: str | None = None) -> Path:
    """Write ``RUN/model`` and a card, whose path is returned, into a new folder in the hub's layout.

    Parameters
    ----------
    run_dir : Path
        A study that is done up to ``evaluate``.
    out : Path
        Must not exist yet; appears when complete.
    licence : str, optional
        The hub's name for the licence of the weights; known for the embedded kit.

    Raises
    ------
    DataError
        Where the run lacks its model or scores, or files of theirs were changed.
    SettingError
        Without a licence, and where ``out`` exists.
    """
    study = Study.open(run_dir)
    recipe = study.recipe
    for stage in ("reconstruct", "evaluate"):
        if not study.is_done(stage):
            raise DataError(
                f"expected '{stage}' of {run_dir} up to date, found it not; 'mindvideo run {run_dir / 'recipe.yaml'} --out "
                f"{run_dir} --until evaluate' makes it"
            )
        require_intact(run_dir, stage, below="model/" if stage == "reconstruct" else "")
    licence = licence or ("mit" if recipe.foundation == "embedded" else None)
    if licence is None:
        raise SettingError(
            f"expected the licence of the weights, which follows from that of the generator in {recipe.foundation}, found "
            "none; give it as the hub writes it (--license creativeml-openrail-m for Stable Diffusion 1.5)"
        )
    if out.exists():
        raise SettingError(f"expected a new folder, found {out}; give another, or remove it")
    card = _write_card(recipe, run_dir, licence)
    with beside_folder(out) as place:
        shutil.copytree(run_dir / "model", place, dirs_exist_ok=True)
        (place / "README.md").write_text(card)
    return out / "README.md"


def _describe_people(stores: Sequence[Store]) -> dict[str, str]:
    if len(stores) == 1:
        return {"whom": f"one person ({stores[0].subject})", "maps": "", "whose": "that person's"}
    whom = f"{len(stores)} people ({join_words([each.subject for each in stores])})"
    return {"whom": whom, "maps": " without maps fitted to that person", "whose": "these people's"}


def _write_card(recipe: Recipe, run_dir: Path, licence: str) -> str:
    stores = open_stores(recipe.data, run_dir)
    store, several = stores[0], len(stores) > 1
    scans = {split: sum(map(store.n_scans, names)) for split, names in store.splits.items()}
    scores = read_scores(run_dir / "evaluate" / "scores.json")
    header, *rows = brief_rows(scores)
    recorded = f"the fMRI of {', '.join(each.subject for each in stores)} (source: {recipe.data.source})"
    if recipe.simulate:
        recorded = f"{f'{len(stores)} simulated subjects' if several else 'a simulated subject'}, no person"
    return _CARD.format(
        licence=licence,
        name=recipe.name,
        version=version("mindvideo"),
        recordings=f"{recorded}: {scans['train']} training scans, {scans['validation']} held out for choices"
        f"{', of each' if several else ''}, {' and '.join(str(each.n_voxels) for each in stores)} "
        f"{'parcels' if store.parcels else 'voxels'}, TR {store.tr_s:g} s, lag {store.lag_s:g} s; films at {store.fps} frames "
        f"a second, {store.size} pixels",
        trained=", ".join(
            f"{name} {json.loads(line)['step'] + 1} steps"
            for name, stage in STAGES.items()
            if stage.trains
            for line in _last_line(run_dir / name / "metrics.jsonl")
        ),
        base="the kit shipped with mindvideo" if recipe.foundation == "embedded" else "see the licence above",
        n_windows=max((score.n or 0 for score in scores.values()), default=0),
        table="\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)),
        **_describe_people(stores),
    )


def _last_line(log: Path) -> list[str]:
    """The last row of a stage that trained; nothing of one that was switched off."""
    rows = [line for line in log.read_text().splitlines() if '"loss"' in line] if log.is_file() else []
    return rows[-1:]
