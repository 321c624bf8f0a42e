"""The report of a made-up run, opened in a headless browser as a reader would open it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
import zarr
from axe_playwright_python.sync_playwright import Axe
from made_up_run import F, N, write_ablation
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from trace_walk import COLLECT, UNCITED, derive, look_up, rank_windows

from mindvideo.report.build import build_report
from mindvideo.report.page import Assets
from mindvideo.report.wording import write, write_number


def find_chromium() -> str:
    named = os.environ.get("MINDVIDEO_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.fail(
            "no chromium found: apt-get update && apt-get install -y chromium, or name one in MINDVIDEO_CHROMIUM"
        )
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        yield browser
        browser.close()


Made = tuple[Path, dict[str, np.ndarray]]
"""A page, and the values of its scores by window."""


class Watched:
    """A page with everything it asked for and complained of."""

    def __init__(
        self,
        browser: Browser,
        path: Path,
        width: int = 1200,
        scheme: Any = "light",
        motion: Any = "reduce",
        unfold: bool = True,
    ) -> None:
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 844 if width < 500 else 800}, color_scheme=scheme, reduced_motion=motion
        )
        self.page.set_default_timeout(180_000)  # a busy machine is slow, not wrong
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.goto(path.as_uri())
        if unfold:
            self.page.get_by_role("button", name="Unfold all").click()
        if self.page.query_selector("canvas"):
            self.page.wait_for_selector("canvas[data-frame]")

    def cards(self) -> list[int]:
        return [int(card.get_attribute("data-window") or -1) for card in self.page.query_selector_all(".card")]


Open = Callable[..., Watched]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens pages, which are closed after the test."""
    pages: list[Watched] = []

    def open_page(path: Path, **options: Any) -> Watched:
        pages.append(Watched(browser, path, **options))
        return pages[-1]

    yield open_page
    for seen in pages:
        seen.page.close()


def overflowing(page: Page) -> list[str]:
    """Elements that reach past the window's right edge, and whether the page scrolls sideways."""
    return page.evaluate(
        """() => {
            const wide = [...document.querySelectorAll('body *')].filter((element) => {
              const box = element.getBoundingClientRect();
              return box.width && !element.closest('.skip') && (box.right > innerWidth + 0.5 || box.left < -0.5);
            }).map((element) => element.tagName + '.' + element.className);
            if (document.documentElement.scrollWidth > innerWidth) wide.push('page');
            return wide;
        }"""
    )


def test_page_opens_from_disk_without_errors_or_network(opened: Open, made: Made) -> None:
    seen = opened(made[0], motion="no-preference")
    seen.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    seen.page.wait_for_timeout(200)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [made[0].as_uri()]
    assert sorted(item.name for item in made[0].parent.iterdir()) == ["differences_run0.json", "index.html"]
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", made[0].read_text())
    text = seen.page.inner_text("body")
    for words in (
        "Simulated",
        "Content came from the simulated brain, layout (better still: mean training frame) in part",
        "26 clips of 6 frames (3 a second) from 2 test films, decoded from the fMRI of 1400 voxels",
        "for motion there is no evidence",
        "V1",
        "subject1",
        "1 h 06 min",
        "adapt has not run",
        "RULE paper".lower(),
    ):
        assert words in text
    picture = "img[alt='flat attention cotrain last']"
    seen.page.locator(picture).scroll_into_view_if_needed()
    seen.page.wait_for_function(f'() => document.querySelector("{picture}").naturalWidth === 240')


def test_clips_play_together_pause_and_step(opened: Open, made: Made) -> None:
    page = opened(made[0], motion="no-preference").page
    page.locator(".card").first.scroll_into_view_if_needed()
    frames = "() => [...document.querySelector('.card').querySelectorAll('canvas')].map(c => c.dataset.frame)"
    seen = set()
    for _ in range(12):
        together = set(page.evaluate(frames))
        assert len(together) == 1
        seen |= together
        page.wait_for_timeout(130)
    assert len(seen) >= 3
    page.get_by_role("button", name="Pause").last.click()
    canvas = page.locator(".card canvas").first
    page.locator(".seek").focus()
    page.keyboard.press("Home")
    first = canvas.screenshot()
    page.wait_for_timeout(500)
    assert canvas.screenshot() == first
    page.keyboard.press("End")
    assert canvas.get_attribute("data-frame") == str(F - 1)
    assert canvas.screenshot() != first
    page.get_by_role("button", name="Play").first.click()
    assert page.get_by_role("button", name="Pause").count() == 2


def test_sorting_and_showing_more(opened: Open, made: Made) -> None:
    seen, values = opened(made[0]), made[1]
    page = seen.page
    ranks = rank_windows(made[0].parent.parent)
    best = [int(i) for i in np.argsort(-np.array(ranks), kind="stable")]
    shown = seen.cards()
    ends = [int(end.get_attribute("data-window") or -1) for end in page.query_selector_all(".end")]
    assert ends == [best[0], best[12], best[-1]]
    assert len(shown) == 9
    assert shown[0] == best[0] and shown[6] == best[-1]
    assert abs(best.index(shown[3]) - (N - 1) / 2) <= 0.5
    for group in (shown[:3], shown[3:6], shown[6:]):
        assert len({i // 2 for i in group}) == 3  # one of a scene
    assert [title.inner_text() for title in page.query_selector_all(".cards h3")] == ["Best", "Median", "Worst"]
    assert page.locator(".shown").inner_text().startswith(f"3 each of the best, median and worst of {N} test windows")
    page.select_option(".order", "best")
    assert seen.cards() == best[:9]
    page.get_by_role("button", name="Show more").click()
    assert seen.cards() == best[:18]
    page.get_by_role("button", name="Show more").click()
    assert seen.cards() == best and page.locator(".more").is_hidden()
    page.select_option(".score", "video_50way")
    assert seen.cards() == [int(i) for i in np.argsort(-values["video_50way"], kind="stable")][:9]
    page.select_option(".score", "epe")  # an error: best is lowest
    assert seen.cards() == [int(i) for i in np.argsort(values["epe"], kind="stable")][:9]
    page.select_option(".order", "worst")
    assert seen.cards() == [int(i) for i in np.argsort(-values["epe"], kind="stable")][:9]
    page.select_option(".order", "film")
    assert seen.cards() == list(range(9))
    assert page.query_selector(".score option[value=consistency]") is None
    assert page.locator(".shown").inner_text() == f"9 of {N} test windows."
    text = page.locator(".card figure.main figcaption").first.inner_text()
    assert text.split()[-1] == write_number(values["epe"][0])
    page.get_by_role("checkbox", name="shuffled brain").uncheck()
    assert page.locator(".card [data-kind=shuffled]").first.is_hidden()
    assert seen.complaints == []


ODD = [100.0, 431.24, 12.25, -0.0001, 0.0625, 0.3125, -0.0625, 99.96, 9.9996, -12.34, 0.0005, 0.0, 1.0]


def test_numbers_under_clips_are_written_as_everywhere_and_the_note_counts_them(opened: Open, run_dir: Path) -> None:
    path = run_dir / "evaluate" / "windows.csv"
    with path.open() as handle:
        rows = sorted(csv.DictReader(handle), key=lambda row: int(row["window"]))
    for i, row in enumerate(rows):
        row["video_50way"] = repr(ODD[i]) if i < len(ODD) else ""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    windows = json.loads((run_dir / "reconstruct" / "windows.json").read_text())
    scenes = [window | {"scene": i // 7} for i, window in enumerate(windows)]
    (run_dir / "reconstruct" / "windows.json").write_text(json.dumps(scenes))
    page = opened(build_report([run_dir], run_dir / "report")).page
    page.select_option(".score", "video_50way")
    groups = [len(row.query_selector_all(".card")) for row in page.query_selector_all(".cards .row")]
    assert groups == [2, 2, 2]  # one of a scene
    assert page.locator(".shown").inner_text().startswith(f"2 each of the best, median and worst of {len(ODD)} ")
    page.select_option(".order", "film")
    page.get_by_role("button", name="Show more").click()
    shown = [item.inner_text().split()[-1] for item in page.query_selector_all(".card figure.main figcaption")]
    assert shown[: len(ODD)] == [write_number(value) for value in ODD]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_window_has_no_overflow(opened: Open, made: Made, scheme: str) -> None:
    page = opened(made[0], width=360, scheme=scheme).page
    assert overflowing(page) == []
    ink, paper = page.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light") and abs(brightness[0] - brightness[1]) > 400


def test_reader_who_wants_no_motion_gets_none(opened: Open, made: Made) -> None:
    page = opened(made[0]).page
    page.wait_for_timeout(800)
    assert page.locator(".card canvas").first.get_attribute("data-frame") == "0"


def test_keyboard_reaches_every_control(opened: Open, made: Made) -> None:
    page = opened(made[0]).page
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
    assert reached >= {
        "skip", "unfold", "play", "seek", "order", "score", "more", "mp4", "png", "copy", "INPUT", "SUMMARY", "A",
    }  # fmt: skip


def test_missing_stages_are_named(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "early"
    (path / "align").mkdir(parents=True)
    (path / "evaluate").mkdir()
    recipe = {"name": "early", "pretrain": {"enabled": False}, "reconstruct": {"negative": "test_mean"}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (path / "evaluate" / "scores.json").write_text('{"ssim_rgb": {"val')
    page = build_report([path], path / "report")
    for width in (1200, 360):
        seen = opened(page, width=width)
        text = seen.page.inner_text("body")
        for words in (
            "Nothing has been scored yet",
            "pretrain is switched off",
            "align has not finished",
            "reconstruct has not run",
            "evaluate/scores.json is not valid JSON",
            "transductive",
        ):
            assert words in text
        assert "Simulated" not in text
        assert seen.complaints == [] and overflowing(seen.page) == []


def test_several_runs_side_by_side(opened: Open, run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "two")
    page = build_report([run_dir, tmp_path / "two"], tmp_path / "both")
    seen = opened(page, width=360)
    captions = seen.page.query_selector_all("#comparison .card:first-of-type figcaption")[:3]
    assert [item.inner_text().split()[0] for item in captions] == ["truth", "one", "two"]
    text = " ".join(seen.page.inner_text("#comparison").split())
    assert "2 methods on the same windows" in text and "one Content came from the simulated brain" in text
    found = seen.page.query_selector_all("#comparison td:not(.own)")
    cells = {item.get_attribute("data-label"): item.inner_text() for item in found}
    assert cells["better than two"] == "0 of 5" and cells["windows"] == "26"
    assert cells["scores from the brain"] == "4 of 5"
    assert len(seen.page.query_selector_all("#comparison .panels figure")) == 6
    assert seen.complaints == [] and overflowing(seen.page) == []
    assert len(seen.page.query_selector_all(".gallery")) == 3
    found = json.loads((page.parent / "differences.json").read_text())
    assert found["pairs"]["one"]["two"]["epe"]["design"] == "paired"
    assert found["pairs"]["one"]["two"]["epe"]["difference"] == 0
    check_citations(seen.page, [run_dir, tmp_path / "two"], page.parent)
    assert serious_faults(seen.page) == {}


def serious_faults(page: Page) -> dict[str, list[str]]:
    found = [fault for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
    return {fault["id"]: [node["html"][:160] for node in fault["nodes"]] for fault in found}


def test_second_report_replaces_the_first(run_dir: Path) -> None:
    path = run_dir
    build_report([path], path / "report")
    (path / "report" / "done.json").write_text("{}")
    shutil.rmtree(path / "reconstruct")
    build_report([path], path / "report")
    shutil.rmtree(path / "baselines")
    build_report([path], path / "report")
    assert sorted(item.name for item in (path / "report").iterdir()) == ["done.json", "index.html"]
    assert "data-window" not in (path / "report" / "index.html").read_text()


def test_pictures_that_do_not_fit_lie_beside_the_page(
    opened: Open, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindvideo.report.build.Assets", partial(Assets, room=20_000))
    out = tmp_path / "page"
    page = build_report([run_dir], out)
    beside = {path.stem for path in (out / "assets" / "run0").glob("*.webp")}
    assert beside and len(beside) < N + 3 and not (out / "assets.tmp").exists()
    assert f"{len(list((out / 'assets').rglob('*.*')))} files did not fit" in page.read_text()
    seen = opened(page)
    assert any(url.endswith(".webp") for url in seen.requests) and seen.complaints == []
    monkeypatch.undo()
    build_report([run_dir], out)
    assert not (out / "assets").exists()


def check_citations(page: Page, run_dirs: list[Path], page_dir: Path) -> set[str]:
    """Every cited number equals its file's, in full and as written; returns the files."""
    cited = page.evaluate(COLLECT)
    assert len(cited) > 150
    for item in cited:
        run_dir = run_dirs[int(item.get("run") or item.get("page") or 0)]
        if "derived" in item:
            assert item["text"] == derive(run_dir, page_dir, item["source"], item["derived"]), item
            continue
        found = look_up(run_dir, page_dir, item["source"], item["key"])
        if item["source"] == "evaluate/windows.csv":
            assert float(item["value"]) == pytest.approx(found, rel=1e-5) and item["text"] == write_number(found), item
        else:
            assert json.loads(item["value"]) == pytest.approx(found, rel=1e-9), item
            assert item["text"] == write(found, item["form"]), item
    return {item["source"] for item in cited}


def test_every_number_traces_to_a_file_of_the_run(opened: Open, made: Made) -> None:
    page = opened(made[0]).page
    files = check_citations(page, [made[0].parent.parent], made[0].parent)
    assert files >= {
        "evaluate/scores.json", "evaluate/windows.csv", "evaluate/near_duplicates.json",
        "evaluate/noise_ceiling.json", "baselines/ridge/evaluate/scores.json", "differences_run0.json",
        "explain/attention.json", "explain/occlusion.json", "explain/temporal.json", "explain/truth.json",
        "align/metrics.jsonl", "prepare/store.zarr", "reconstruct/done.json", "*/done.json",
    }  # fmt: skip
    assert page.evaluate(UNCITED) == []


def test_numbers_of_an_ablation_trace_to_its_table(opened: Open, run_dir: Path) -> None:
    write_ablation(run_dir.parent)
    page = opened(build_report([run_dir], run_dir / "report")).page
    files = check_citations(page, [run_dir], run_dir / "report")
    assert f"{run_dir.parent.name}/ablation.json" in files and page.evaluate(UNCITED) == []
    assert "SSIM by test film, first seed" in page.inner_text("#ablation")


def test_folded_page_is_short_on_paper_and_telephone(opened: Open, made: Made) -> None:
    page = opened(made[0], unfold=False).page
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF") and 1 < len(re.findall(rb"/Type\s*/Page\b", content)) <= 8
    page = opened(made[0], width=390, unfold=False).page
    assert page.evaluate("document.documentElement.scrollHeight") <= 9000


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_first_screen_answers_a_reader_of_two_minutes(opened: Open, made: Made, width: int) -> None:
    seen = opened(made[0], width=width, unfold=False)
    height = 844 if width < 500 else 800 if width > 900 else 1024
    for part in ("h1", ".what", ".trio", ".way svg", ".not h2"):
        box = seen.page.locator(part).first.bounding_box()
        assert box and box["y"] + box["height"] <= height and box["width"] > 100, (part, box)
    seen.page.screenshot(full_page=True)
    assert seen.complaints == [] and overflowing(seen.page) == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [made[0].as_uri()]
    check_citations(seen.page, [made[0].parent.parent], made[0].parent)


def test_figures_clips_tables_and_citation_can_be_saved(opened: Open, made: Made, tmp_path: Path) -> None:
    seen, run_dir = opened(made[0]), made[0].parent.parent
    page = seen.page

    def save(button: Locator) -> Path:
        with page.expect_download() as caught:
            button.click()
        path = tmp_path / caught.value.suggested_filename
        caught.value.save_as(path)
        return path

    for name in ("evaluate/scores.csv", "evaluate/windows.csv", "recipe.yaml"):
        path = run_dir / name
        assert save(page.get_by_role("link", name=path.name, exact=True)).read_bytes() == path.read_bytes()
    assert save(page.get_by_role("link", name="mindvideo.bib")).read_text().count("@") == 2
    differences = save(page.get_by_role("link", name="differences_run0.csv"))
    with differences.open() as handle:
        rows = {row["score"]: row for row in csv.DictReader(handle)}
    tested = json.loads((made[0].parent / "differences_run0.json").read_text())["pairs"]["this study"]["ridge"]
    assert {key: float(row["difference"]) for key, row in rows.items()} == {
        k: e["difference"] for k, e in tested.items()
    }

    def save_picture(name: str) -> Image.Image:
        return Image.open(save(page.get_by_role("button", name=f"Save “{name}” as PNG")))

    picture = save_picture("From shuffled brain to true caption")
    assert picture.format == "PNG" and picture.width == 3 * 340
    assert len(picture.convert("RGB").getcolors(10**6) or ()) > 20
    assert save_picture("Flat attention cotrain last").size == (240, 120)
    film = save(page.locator(".end a.mp4").first)
    index = int(page.locator(".end").first.get_attribute("data-window") or -1)
    clips = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="r")
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == F and frames[0].shape == (128, 256, 3)
    for frame in range(F):
        for side, kind in ((frames[frame][:, :128], "truth"), (frames[frame][:, 128:], "reconstruction")):
            small = side.reshape(32, 4, 32, 4, 3).mean((1, 3))
            assert np.abs(small - np.asarray(clips[kind][index, frame], float)).mean() < 6
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()  # the clipboard answers later
    assert "1400 cortical voxels" in page.evaluate("getSelection().toString()")
    assert seen.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(opened: Open, made: Made, scheme: str, width: int) -> None:
    page = opened(made[0], width=width, scheme=scheme).page
    assert serious_faults(page) == {}
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((item) => Number(item.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
