"""For the reader's own work: methods, citations, machine, files."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from mindvideo.clip_sets import clip_set
from mindvideo.cost import describe_machine
from mindvideo.evaluate.score import finite
from mindvideo.report.page import Assets
from mindvideo.report.read import Run
from mindvideo.report.wording import join_words, write
from mindvideo.stages import STAGES

CITATION = Path(__file__).parent / "templates" / "citation.bib"
SAVED = (
    ("evaluate/scores.csv", "every score with its controls, intervals and P"),
    ("evaluate/windows.csv", "every score of every window"),
    ("evaluate/scores.tex", "the table for a paper"),
    ("recipe.yaml", "every setting"),
)


def list_saved(run: Run, key: str, assets: Assets) -> list[dict[str, str]]:
    """Tables, recipe and bibliography: name, address and what each is."""
    found = [
        {"name": path.name, "text": text, "href": assets.add(f"{key}/{path.name}", path.read_bytes())}
        for file, text in SAVED
        if (path := run.path / file).is_file()
    ]
    bib = write_bibliography(run)
    place = assets.add(f"{key}/mindvideo.bib", bib.encode())
    return [*found, {"name": "mindvideo.bib", "text": "what to cite", "href": place}]


def write_bibliography(run: Run) -> str:
    """BibTeX of the software, the paper, and the paper's recordings if used."""
    entries = CITATION.read_text(encoding="utf-8").replace("VERSION", _code(run)).split("\n\n")
    is_wen = run.setting("data.source") == "wen2018" and not run.is_simulated
    return "\n\n".join(entries if is_wen else entries[:2]).strip() + "\n"


def write_citation(run: Run) -> str:
    """The citation as a sentence."""
    return (
        f"The MinD-Video developers. MinD-Video (version {_code(run)}) [computer software]. Method: Chen Z, Qing J, Zhou "
        "JH. Cinematic Mindscapes: High-quality Video Reconstruction from Brain Activity. Advances in Neural Information "
        "Processing Systems (NeurIPS), 2023."
    )


def _code(run: Run) -> str:
    codes = [str(state.done["code"]) for state in run.stages.values() if state.done.get("code")]
    return codes[-1] if codes else importlib.metadata.version("mindvideo")


def list_machine(run: Run) -> tuple[list[tuple[str, str]], str]:
    """Code, packages, precision and hardware as recorded, or as they are now, and which."""
    done = [state.done for state in run.stages.values()]
    recorded = [each["machine"] for each in done if isinstance(each.get("machine"), dict)]
    note = "As recorded by the stages."
    if not recorded:
        recorded = [describe_machine()]
        note = "The stages recorded none; these are of the machine that wrote this page."
    found: dict[str, list[str]] = {"MinD-Video": [_code(run)]}
    if precision := dict.fromkeys(str(each["precision"]) for each in done if each.get("precision")):
        found["precision"] = list(precision)
    for machine in recorded:
        for name, value in machine.items():
            text = write(finite(value), "bytes") if name.endswith("_bytes") else str(value)
            values = found.setdefault(name.removesuffix("_bytes").replace("_", " "), [])
            if text not in values:
                values.append(text)
    return [(name, "; ".join(values)) for name, values in found.items()], note


def write_methods(run: Run, data: dict[str, Any] | None) -> str:
    """A paragraph of methods from the run's own settings."""
    parts = [
        _data_sentence(run, data) if data else "",
        _training_sentence(run),
        _sampling_sentence(run),
        _scores_sentence(run),
    ]
    machine = dict(list_machine(run)[0])
    words = f"Computed with MinD-Video {machine.pop('MinD-Video')}"
    words += f" (commit {commit})" if (commit := machine.get("commit")) else ""
    words += f" and PyTorch {machine['torch']}" if "torch" in machine else ""
    words += f" in {machine['precision']}" if "precision" in machine else ""
    hardware = machine.get("accelerator") or machine.get("processor")
    return " ".join(part for part in (*parts, words + (f" on {hardware}." if hardware else ".")) if part)


def _data_sentence(run: Run, data: dict[str, Any]) -> str:
    summary = data["summary"]
    films = {split: len(names) for split, names in summary["segments"].items()}
    text = "Simulated brain" if run.is_simulated else "Brain"
    text += (
        f" activity of {summary['subject']} (a volume every {summary['tr_s']:g} s) to {films['train']} training, "
        f"{films['validation']} validation and {films['test']} test films was paired with the frames shown "
        f"{summary['lag_s']:g} s earlier."
    )
    rule = run.setting("data.selection")
    chosen = f" ({rule}, α = {run.setting('data.alpha')}, on repeats of training films)" if rule == "bonferroni" else ""
    return text + f" {summary['voxels']} cortical voxels were used{chosen}."


def _training_sentence(run: Run) -> str:
    stages = []
    for name, state in run.stages.items():
        steps, batch = (run.setting(f"{name}.{key}") for key in ("steps", "batch_size"))
        if state.state == "done" and STAGES[name].trains and steps:
            rate = f", learning rate {lr}" if (lr := run.setting(f"{name}.lr")) else ""
            stages.append(f"{name} ({STAGES[name].summary}; {steps} steps of {batch or '–'}{rate})")
    if not stages:
        return ""
    return (
        f"Following Chen, Qing & Zhou (2023), an fMRI encoder and a latent video diffusion model were trained in "
        f"{'one stage' if len(stages) == 1 else f'{len(stages)} stages'}: {join_words(stages)}."
    )


def _sampling_sentence(run: Run) -> str:
    made = run.stages["reconstruct"].done.get("settings", {}).get("reconstruct")
    if not made:
        return ""
    return (
        f"Clips were sampled with {made['scheduler']} in {made['steps']} steps, guidance {made['guidance_scale']} against "
        f"the negative condition {made['negative']}; test films took part in neither training nor any choice."
    )


def _scores_sentence(run: Run) -> str:
    block_s, permutations, bootstraps = (
        run.setting(f"evaluate.{name}") for name in ("block_s", "permutations", "bootstraps")
    )
    if not (run.scores and block_s and permutations and bootstraps):
        return ""
    sets = dict.fromkeys(name for score in run.scores.values() for name in score.controls)
    labels = [run.clip_set(name).label for name in sets if clip_set(name).role != "ceiling"]
    n = max(score.n for score in run.scores.values())
    return (
        f"Reconstructions of {n} test windows were scored by {len(run.scores)} measures and compared with {join_words(labels)} "
        f"(one-sided sign-flip tests of blocks of {block_s:g} s, {permutations} permutations, corrected over scores by "
        f"Holm’s method; 95 % intervals from {bootstraps} block bootstraps)."
    )
