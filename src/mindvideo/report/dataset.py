"""The data of a run, and the choices behind its scores."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from markupsafe import Markup, escape

from mindvideo.atlas import N_CORTEX
from mindvideo.data.store import Store
from mindvideo.errors import DataError
from mindvideo.evaluate.score import finite
from mindvideo.evaluate.tables import group_reasons
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, count_of
from mindvideo.report.wording import write_count

STORE = "prepare/store.zarr"
NEAR = "evaluate/near_duplicates.json"
MOST_AREAS = 24
MOST_PAIRS = 24


def summarise_data(run: Run) -> dict[str, Any] | None:
    """Subject, voxels, windows and provenance of the store; None without one."""
    path = run.path / STORE
    if not path.is_dir():
        return None
    try:
        summary = Store.open(path).summary()
    except DataError as error:
        run.problems.append(str(error))
        return None
    source = Source(STORE, content=summary)

    def count(*key: str) -> Markup:
        return source.cite(*key, form="plain" if isinstance(source.at(*key).value, float) else "count")

    areas = list(summary["voxels_per_area"])
    shown = [(name, source.at("voxels_per_area", name)) for name in areas[:MOST_AREAS]]
    dots = [Dot.at(name, place, kind="main", form="count") for name, place in shown]
    facts: list[tuple[str, Markup | str]] = [
        ("subject", str(summary["subject"])),
        ("voxels used", Markup(f"{count('voxels')} in {count_of(len(areas), STORE, 'areas')} areas")),
        ("median between-run r", source.cite("reproducibility_median")),
        ("repetition time", Markup(f"{count('tr_s')} s")),
        ("lag of the scans", Markup(f"{count('lag_s')} s")),
        ("frames", Markup(f"{count('fps')} a second, {count('size')} px")),
        ("different captions", count("captions")),
        ("files read", Markup(f"{count_of(len(summary['sources']), STORE, 'sources')}, checksums in the store")),
    ]
    if summary["voxels_left"] or summary["voxels_right"]:
        facts.insert(2, ("left, right hemisphere", Markup(f"{count('voxels_left')}, {count('voxels_right')}")))
    if run.noise_ceiling:
        parts = [
            Markup(f"{escape(name)} {cite(value, Source('evaluate/noise_ceiling.json', (name, 'median')))}")
            for name, value in run.noise_ceiling.items()
        ]
        facts.append(("noise ceiling of a voxel, median", Markup(", ").join(parts)))
    for split, names in summary["segments"].items():
        films = f"{count_of(len(names), STORE, f'segments of {split}')} film{'' if len(names) == 1 else 's'}"
        runs = "/".join(str(value) for value in sorted({summary["repeats"][name] for name in names}))
        text = f"{count('windows', split)} windows, {count('scenes', split)} scenes, {films}"
        text += f", {escape(runs)} recording{'' if runs == '1' else 's'} each"
        facts.append((split, Markup(text) if names else "none"))
    return {
        "facts": facts,
        "summary": summary,
        "source": _write_source(run, summary),
        "plot": draw_dots("voxels per area", dots, chance=0.0),
        "note": f"the {MOST_AREAS} largest of {len(areas)}" if len(areas) > MOST_AREAS else "",
        "provenance": [
            (step["step"], ", ".join(f"{key} {write_value(value)}" for key, value in step["parameters"].items()))
            for step in summary["provenance"]
        ],
        "near": _near_duplicates(run),
    }


def _write_source(run: Run, summary: dict[str, Any]) -> Markup:
    source = Source(STORE, content=summary)
    films = list(dict.fromkeys(str(window.get("segment")) for window in run.windows)) or summary["segments"]["test"]
    text = Markup("Test films")
    if run.clips:
        clips = next(iter(run.clips.values())).shape
        text = Markup("{} clips of {} frames ({} a second) from {} test film{}").format(
            count_of(clips[0], "reconstruct/windows.json", "windows"),
            clips[1],
            source.cite("fps", form="plain"),
            count_of(len(films), "reconstruct/windows.json", "films"),
            "" if len(films) == 1 else "s",
        )
    return text + Markup(", decoded from the fMRI of {} voxels of {}’s cortex (a scan every {} s)").format(
        source.cite("voxels", form="count"),
        summary["subject"],
        source.cite("tr_s", form="plain"),
    )


def _near_duplicates(run: Run) -> dict[str, Any] | None:
    if (pairs := run.near_duplicates.get("pairs")) is None:
        return None
    rows = []
    for i, pair in enumerate(pairs[:MOST_PAIRS]):
        r = Source(NEAR, content=run.near_duplicates).cite("pairs", i, "correlation")
        test, train = (f"{pair[f'{side}_segment']} · scan {pair[f'{side}_scan']}" for side in ("test", "train"))
        rows.append({"test": test, "train": train, "r": r})
    return {"rows": rows, "total": len(pairs)}


def write_value(value: Any) -> str:
    """A provenance value in a few words: long lists are counted, not listed."""
    if isinstance(value, list | tuple | dict) and len(value) > 6:
        return f"({len(value)} values)"
    if isinstance(value, dict):
        return "; ".join(f"{key} {write_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_validation(run: Run) -> str:
    """How choices were made: on films held out of training, or without any."""
    if run.setting("data.validation_segments") == 0:
        return (
            "No training film was held out (data.validation_segments = 0, as in the paper), so there are no validation "
            "figures; the rivals chose their penalties by blocked cross-validation on the training films."
        )
    return (
        "Validation is measured on training films held out of training; choices, the rivals' too, are made there, never "
        "on the test films."
    )


def list_choices(run: Run) -> list[dict[str, Any]]:
    """Choices that decide what the scores mean.

    ``kind`` is ``transductive`` (test recordings shape a reconstruction), ``inductive``, ``limit`` (what
    the method itself leaves open) or ``note``.
    """
    choices = [_negative(run)]
    if most := run.setting("reconstruct.max_windows"):
        text = f"Only {most} test windows, evenly spread and fixed before anything was scored, were reconstructed."
        choices.append(_choice("Test windows", text, "note", True))
    if run.setting("data.captions") == "truth":
        text = "The captions are the simulation's own (data.captions = truth); a captioner's would be less exact."
        choices.append(_choice("Captions", text, "note", True))
    choices += [*_duplicates(run), *_voxels(run), *_limits(run)]
    if run.scores and not any("shuffled" in score.controls for score in run.scores.values()):
        text = "The shuffled control was not computed: these scores do not show that the brain was used."
        choices.append(_choice("Controls", text, "note", True))
    for reason, names in group_reasons(run.left_out).items():
        choices.append(_choice("Left out", f"{', '.join(names)}: {reason}.", "note"))
    return choices


def _limits(run: Run) -> list[dict[str, Any]]:
    people = "Trained and tested within one person; other people are not explored (the paper's limitation)."
    if run.people or run.path.parent.name == "people":
        people = "One model was trained on all people of this study; none was left out, so no new person was tested."
    share: str | Markup = "Only the chosen voxels are used, in the paper less than a tenth of the cortex."
    with suppress(DataError):
        store = Store.open(run.path / STORE)
        if store.has_positions:
            used = cite(store.n_voxels, Source(STORE).at("voxels"), "count")
            share = Markup(
                "{} of the {} positions of the cortex are used; the rest is left unexploited (the paper’s limitation)."
            ).format(used, write_count(N_CORTEX))
    return [_choice("People", people, "limit"), _choice("Cortex", share, "limit")]


def _choice(name: str, text: str | Markup, kind: str, is_warning: bool = False) -> dict[str, Any]:
    return {"name": name, "text": text, "kind": kind, "is_warning": is_warning}


def _negative(run: Run) -> dict[str, Any]:
    negative = run.setting("reconstruct.negative", "train_mean")
    if negative == "test_mean":
        text = (
            "The negative condition is the mean of the test scans (reconstruct.negative = test_mean, the paper's "
            "choice), so a clip cannot be reconstructed without the other test scans."
        )
        return _choice("Guidance", text, "transductive", True)
    words = {
        "train_mean": "the mean of the training scans",
        "null": "the empty caption, ordinary classifier-free guidance",
        "none": "none, guidance is off",
    }
    text = f"The negative condition is {words.get(str(negative), str(negative))} (reconstruct.negative = {negative})."
    made = run.stages["reconstruct"].done
    if "distill" in made.get("inputs", {}):  # what made the clips; the recipe may have changed since
        steps = made["settings"]["reconstruct"]["steps"]
        text += f" A student of the guided generator samples the clips in {steps} passes (stage distill)."
    return _choice("Guidance", text, "inductive")


def _voxels(run: Run) -> list[dict[str, Any]]:
    if run.setting("data.source") == "published":
        text = "Chosen by the publishers of the arrays, not known how; test recordings may have taken part."
        return [_choice("Voxels", text, "note", True)]
    rule = run.setting("data.selection")
    if rule == "all":
        return [_choice("Voxels", f"All voxels of the areas {run.setting('data.areas', 'cortex')}.", "inductive")]
    text = f"Rule “{rule}”, by the repeats of the training films; test recordings take no part."
    return [_choice("Voxels", text, "inductive")] if rule else []


def _duplicates(run: Run) -> list[dict[str, Any]]:
    near = run.near_duplicates
    if finite(near.get("count")) is None:
        text = "Near-duplicates between training and test films were not audited in this run."
        return [_choice("Near-duplicates", text, "note", True)] if run.scores else []
    shown, scans = (cite(finite(near.get(key)), Source(NEAR, (key,)), "count") for key in ("count", "test_scans"))
    text = Markup(f"{shown} of {scans} test scans look like a training scan; they are listed under Data.")
    return [_choice("Near-duplicates", text, "note", bool(near["count"]))]
