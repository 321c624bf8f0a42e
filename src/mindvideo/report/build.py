"""Write the report: one static page, readable from disk and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from mindvideo.errors import DataError
from mindvideo.files import beside, beside_folder, write_json
from mindvideo.report import comparison, methods_text, sections
from mindvideo.report.ablation import ablation_section
from mindvideo.report.brain import list_brain, list_surfaces, split_pictures, warn_of_maps
from mindvideo.report.dataset import describe_validation, list_choices, summarise_data
from mindvideo.report.gallery import describe_gallery, describe_shared
from mindvideo.report.page import Assets, render
from mindvideo.report.person_runs import OWN_STAGES, link_people, list_people
from mindvideo.report.read import Run, read_run
from mindvideo.report.sprites import encode_picture
from mindvideo.report.verdict import draw_way, write_verdict, write_way
from mindvideo.report.wording import join_words
from mindvideo.stages import Progress, StageContext


def run(context: StageContext) -> None:
    """Stage ``report``: write ``RUN/report/index.html``, with a part for each person."""
    link_people(context.recipe, context.run_dir)
    build_report([context.run_dir], context.folder, context.progress)


def build_report(run_dirs: Sequence[Path], out: Path, progress: Progress | None = None) -> Path:
    """Write the report of one run or of several side by side as ``index.html``.

    Run folders may be unfinished. A run of several people is followed by each of them. A folder that
    ``mindvideo ablate`` wrote adds its table; alone, it gives the page of its full method. ``out`` also
    receives ``differences*.json``, and ``assets/`` where pictures do not fit the page.
    """
    ablations = find_ablations(run_dirs)
    paths = [path for path in run_dirs if (path / "recipe.yaml").is_file() or path not in ablations]
    if not paths and ablations:
        paths = [ablations[0] / "full"]  # every ablation has it
    if not paths:
        raise DataError("expected at least one run folder, found none; give the folder of a run, e.g. runs/demo")
    runs = [read_run(each) for path in paths for each in (path, *list_people(path))]
    out.mkdir(parents=True, exist_ok=True)
    with beside(out / "index.html") as page, beside_folder(out / "assets") as folder:
        html, tested = _compose(runs, ablations, Assets(folder), progress)
        page.write_text(html, encoding="utf-8")
        for path in out.glob("differences*.json"):
            path.unlink()
        for name, found in tested.items():
            write_json(out / name, found)
    if not any((out / "assets").iterdir()):
        (out / "assets").rmdir()
    return out / "index.html"


def find_ablations(paths: Sequence[Path]) -> list[Path]:
    """Folders with an ``ablation.json``: those given, above or inside them."""
    near = [near for path in paths for near in (path, path.resolve().parent, path / "ablation")]
    found: dict[Path, Path] = {}
    for path in near:
        if (path / "ablation.json").is_file():
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _compose(
    runs: Sequence[Run], ablations: Sequence[Path], assets: Assets, progress: Progress | None
) -> tuple[str, dict[str, Any]]:
    """The page, and the tested differences by the name of the file they go to."""
    tested: dict[str, Any] = {}
    pages = [_describe_run(item, i, assets, tested, progress) for i, item in enumerate(runs)]
    side_by_side = shared = None
    about: list[dict[str, Any]] = []
    if len(runs) > 1:
        columns = [comparison.Column(item.name, item, i) for i, item in enumerate(_named_apart(runs))]
        about = comparison.describe_runs(columns)
        alone = [column for column in columns if not column.run.people]  # people's mean is no rival of theirs
        side_by_side = _compare(alone, "differences.json", assets, tested)
        shared = describe_shared([column.run for column in alone], assets, [column.index for column in alone])
    content = {
        "pages": pages,
        "people": [name for item in runs for name in item.people],
        "shared": shared,
        "about": about,
        "comparison": side_by_side,
        "ablations": [Markup(ablation_section(path)) for path in ablations],
        "n_beside": assets.n_beside,
        "title": " and ".join(item.name for item in runs) if len(runs) < 4 else f"{len(runs)} runs",
    }
    return render("report.html", content), tested


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, with a number after names that occur twice."""
    names = [item.name for item in runs]
    for i, item in enumerate(runs):
        if names.count(names[i]) > 1:
            item.name = f"{names[i]} ({i + 1})"
    return list(runs)


def _compare(
    columns: list[comparison.Column], file: str, assets: Assets, tested: dict[str, Any]
) -> dict[str, Any] | None:
    found = comparison.measure_differences(columns)
    table = comparison.tabulate(columns, found, file)
    if table is None:
        return None
    tested[file] = found
    name = f"{Path(file).stem}.csv"
    place = assets.add(name, comparison.write_differences(found).encode()) if found["pairs"] else ""
    return table | {"file": file, "csv_name": name, "csv": place}


def _describe_run(
    item: Run, index: int, assets: Assets, tested: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    key = f"run{index}"
    try:
        judged = warn_of_maps(item)
        brain = list_brain(item)
        data = summarise_data(item)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        judged, brain, data = {}, [], None
        item.problems.append(
            f"a file of explain/ or evaluate/ holds other content than expected ({error!r}); run both again"
        )
    pictures = _pictures(item, key, assets, judged)
    rivals = comparison.list_rivals(item, index)
    title, verdict = write_verdict(item)
    machine, machine_note = methods_text.list_machine(item)
    of_each = ("prepare", *OWN_STAGES) if item.people else ()  # of several people
    elsewhere = dict.fromkeys(of_each, f"in the parts of {join_words(item.people)}")
    return {
        "key": key,
        "index": index,
        "run": item,
        "title": title,
        "verdict": verdict,
        "way": draw_way(item),
        "way_text": write_way(item),
        "stage_sentence": {name: state.sentence for name, state in item.stages.items()} | elsewhere,
        "choices": list_choices(item),
        "gallery": describe_gallery(item, key, assets, progress),
        "controls": sections.list_sets(item),
        "scores": sections.list_scores(item),
        "score_heads": sections.list_heads(item),
        "ways": sections.list_ways(item),
        "films": sections.list_films(item),
        "has_truth": sections.has_truth(item),
        "rivals": _compare(rivals, f"differences_{key}.json", assets, tested) if rivals else None,
        "training": sections.list_training(item),
        "validation": describe_validation(item),
        "brain": brain,
        "surfaces": list_surfaces(item, assets.folder.parent, judged),
        "first_picture": pictures[:1],
        "pictures": pictures[1:],
        "data": data,
        "stages": sections.list_stages(item),
        "total_time": sections.total_time(item),
        "machine": machine,
        "machine_note": machine_note,
        "saved": methods_text.list_saved(item, key, assets),
        "methods": methods_text.write_methods(item, data),
        "citation": methods_text.write_citation(item),
    }


def _pictures(item: Run, key: str, assets: Assets, judged: dict[str, Markup]) -> list[dict[str, Any]]:
    """Pictures of ``explain/``, the final encoder's first, those with a warning last."""
    found = []
    first, others = split_pictures(item)
    for name in (*first, *others):
        with Image.open(item.path / "explain" / name) as picture:
            content = encode_picture(picture)
            size = picture.size
        stem = Path(name).stem
        place = assets.add(f"{key}/{stem}.webp", content)
        warning = judged.get(stem.partition("_")[2])
        found.append({"src": place, "name": stem.replace("_", " "), "size": size, "warning": warning})
    return sorted(found[: len(first)], key=lambda picture: picture["warning"] is not None) + found[len(first) :]
