"""fMRIPrep and BIDS folders as people have them: each kind of oddity gives the right scans, or a refusal with a way out."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindvideo.atlas import area_of
from mindvideo.config import Data
from mindvideo.data.bids import find_inherited, parse_name, read_events, read_inherited, read_table
from mindvideo.data.cifti import write_cortex
from mindvideo.data.denoising import read_confounds
from mindvideo.data.film_names import locate_film, name_films, other_names
from mindvideo.data.readers import discover, prepare
from mindvideo.data.video import write_video
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError

TR, VOLUMES, SCANS, ONSET, LAG = 2.0, 31, 9, 4.0, 4.0
VERTEX = np.sort(np.r_[area_of("V1")[:12], area_of("V1")[-11:]])
COLUMNS = ("csf", "white_matter", "trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
FILMS = ("a.mp4", "b.mp4", "c.mp4", "t.mp4")


class Folder:
    """A data set of one person: a run for each film."""

    def __init__(self, root):
        self.root, self.data, self.confounds = root, {}, {}
        self.func, self.raw, self.stimuli = root / "der/sub-01/func", root / "bids/sub-01/func", root / "stimuli"
        self.captions = root / "captions.json"
        for folder in (self.func, self.raw, self.stimuli):
            folder.mkdir(parents=True)
        for number, film in enumerate(FILMS, 1):
            rng = np.random.default_rng(number)
            self.write_run(number, 900 + 9 * rng.standard_normal((VOLUMES, len(VERTEX))).cumsum(axis=0))
            self.write_confounds(number, {name: rng.standard_normal(VOLUMES) for name in COLUMNS})
            self.write_events(number, [(ONSET, SCANS * TR, film)])
            write_video(self.stimuli / film, (np.full((32, 32, 3), 3 * i, np.uint8) for i in range(SCANS * 8)), 4, 32)
            sidecar = self.func / f"{self.run(number)}_space-fsLR_den-91k_bold.json"
            sidecar.write_text(json.dumps({"RepetitionTime": TR}))

    def run(self, number):
        return f"sub-01_task-movie_run-{number}"

    def bold(self, number):
        return self.func / f"{self.run(number)}_space-fsLR_den-91k_bold.dtseries.nii"

    def write_run(self, number, data):
        self.data[number] = np.asarray(data, np.float32)
        write_cortex(self.bold(number), self.data[number], VERTEX, TR)

    def write_confounds(self, number, table):
        self.confounds[number] = table
        rows = [[v if isinstance(v, str) else f"{v:.17g}" for v in row] for row in zip(*table.values(), strict=True)]
        path = self.func / f"{self.run(number)}_desc-confounds_timeseries.tsv"
        path.write_text("\n".join("\t".join(row) for row in [list(table), *rows]) + "\n")

    def write_events(self, number, rows, name=None):
        path = self.raw / (name or f"{self.run(number)}_events.tsv")
        lines = ["onset\tduration\tstim_file", *("\t".join(map(str, row)) for row in rows)]
        path.write_text("\n".join(lines) + "\n")

    def write_captions(self, captions):
        self.captions.write_text(json.dumps(captions))

    def settings(self, **changes):
        own = {"stimuli": self.stimuli, "bids": self.root / "bids", "task": "movie", "test": ["t"]}
        if not self.captions.exists():
            self.write_captions({name: ["grey"] * SCANS for name in "abct"})
        base = {
            "source": "fmriprep",
            "captions": str(self.captions),
            "size": 16,
            "tr_s": TR,
            "lag_s": LAG,
            "areas": "V1",
        }
        fmriprep = own | changes.pop("fmriprep", {})
        return Data(**(base | {"selection": "all", "fmriprep": fmriprep} | changes))

    def find(self, **changes):
        return discover(self.root / "der", self.settings(**changes))

    def prepare(self, **changes):
        return prepare(self.root / "der", self.root / "store.zarr", self.settings(**changes))

    def refused(self, *parts, error=DataError, **changes):
        with pytest.raises(error) as caught:
            self.prepare(**changes)
        for part in parts:
            assert part in str(caught.value), caught.value
        assert not (self.root / "store.zarr").exists()

    def expected(self, number, volumes, kept=None, first=4, n=SCANS):
        """Least squares on trend, confounds and cosines, over the kept volumes; then the film's volumes."""
        data = self.data[number].astype(float)
        order = int(np.floor(2 * VOLUMES * 0.008 * TR))
        k = np.arange(VOLUMES)
        cosines = [np.cos(np.pi / VOLUMES * (k + 0.5) * i) for i in range(1, order + 1)]
        design = np.column_stack([np.ones(VOLUMES), k, *volumes, *cosines])
        kept = np.ones(VOLUMES, dtype=bool) if kept is None else kept
        rest = data[kept] - design[kept] @ np.linalg.lstsq(design[kept], data[kept], rcond=None)[0]
        whole = np.full(data.shape, np.nan)
        whole[kept] = rest / rest.std(axis=0, ddof=1)
        return whole[first : first + n]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def _equals(store, name, expected, vertex=VERTEX):
    np.testing.assert_allclose(store.fmri(name), expected[:, np.searchsorted(vertex, store.vertex)], atol=1e-5)


def _words(source):
    return {remark.text: remark.names for remark in source.remarks}


# Events


def test_rows_that_are_shots_are_one_showing(folder):
    folder.write_events(1, [(4, 5, "a.mp4"), (9.02, 6, "a.mp4"), (15, 7, "a.mp4")])
    source = folder.find()
    assert [len(segment.runs) for segment in source.segments] == [1, 1, 1, 1] and source.segments[0].n_scans == SCANS
    joined = _words(source)["films with rows for shots or annotations, joined to one showing each"]
    assert joined == (f"{folder.run(1)}:a.mp4",)
    folder.write_events(1, [(4, 18, "a.mp4"), (5, 2, "a.mp4"), (9, 1, "a.mp4"), (21, 1, "a.mp4")])  # annotated
    assert [len(run.read.weights) for run in folder.find().segments[0].runs] == [SCANS]
    folder.write_events(1, [(0, 18, "a.mp4"), (18, 18, "a.mp4")])  # twice in a row is twice
    assert len(folder.find().segments[0].runs) == 2
    folder.write_events(1, [(4, 3, "a.mp4"), (9, 2, "a.mp4"), (15, 4, "a.mp4")])
    folder.refused("a row for each showing of a.mp4", "3 rows", "with gaps", "one row")


def test_films_at_one_time_and_shared_scans_are_refused(folder):
    folder.write_events(1, [(4, 18, "a.mp4"), (4, 18, "a.mp4")])
    folder.refused("one film at a time", "with a row for each showing")
    folder.write_events(1, [(4, 18, "a.mp4"), (6, 18, "t.mp4")])
    folder.refused("one film at a time", "a.mp4 from second 4 to 22", "t.mp4 from second 6", f"{folder.run(1)}:t.mp4")
    only = {"exclude": [f"{folder.run(1)}:t.mp4"]}
    assert len(folder.find(fmriprep=only).segments) == 4  # the advice works
    folder.write_events(1, [(3, 18, "a.mp4"), (21, 18, "t.mp4")])  # halfway between volumes: one volume for both
    folder.refused("no volume that test and training share, found 1", "test film t.mp4 and of a.mp4", "nearest")
    shared = [segment.runs[0].read for segment in folder.find(fmriprep={"resample": "nearest"}).segments]
    assert all(not reader.weights[:, ~reader.seen].any() for reader in shared)


def test_logged_lengths_may_be_some_frames_off(folder):
    for number, length in ((1, 17.7), (2, 18.3), (3, 0), (4, "n/a")):
        folder.write_events(number, [(4, length, FILMS[number - 1])])
    source = folder.find()
    assert [segment.n_scans for segment in source.segments] == [SCANS] * 4
    lengthless = _words(source)["showings without a logged length, taken to last as long as their films"]
    assert lengthless == (f"{folder.run(3)}:c.mp4", f"{folder.run(4)}:t.mp4")
    folder.write_events(1, [(4, 18.9, "a.mp4"), (34, 17.6, "a.mp4")])  # a player that closed late
    assert folder.find().segments[0].n_scans == SCANS
    folder.write_events(1, [(4, 14, "a.mp4")])  # broken off
    assert folder.find().segments[0].n_scans == 7
    folder.write_events(1, [(4, -1, "a.mp4")])
    folder.refused("line 2", "'-1'", "n/a for a film shown to its end")


def test_any_film_is_a_film_and_the_rest_is_named(folder):
    (folder.stimuli / "a.mp4").rename(folder.stimuli / "a.m4v")
    folder.bold(2).rename(folder.bold(2).with_suffix(".nii.tmp"))
    with gzip.open(f"{folder.bold(2)}.gz", "wb") as file:
        file.write(folder.bold(2).with_suffix(".nii.tmp").read_bytes())
    (folder.stimuli / "note.txt").write_text("hello " * 400)
    rows = [(0, 1, "cross.png"), (1, 1, "note.txt"), (2, 1, "tone.wav"), (4, 18, "a.m4v"), (40, 1, "cross.png")]
    folder.write_events(1, rows)
    source = folder.find()
    assert source.segments[0].film.name == "a.m4v"
    left_out = ("cross.png (2x)", "note.txt (1x)", "tone.wav (1x)")
    assert _words(source)["stimuli left out, which are no films"] == left_out
    store = folder.prepare()
    assert store.remarks == ["stimuli left out, which are no films (3): cross.png (2x), note.txt (1x), tone.wav (1x)"]
    (folder.stimuli / "a.m4v").write_bytes((folder.stimuli / "a.m4v").read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.m4v"):  # a damaged film is not passed over
        folder.find()


@pytest.mark.parametrize(
    "stated",
    ["/stimuli/deep/a.mp4", "STIMULI/deep/a.mp4", "./deep/a.mp4", r"stimuli\deep\a.mp4", r"C:\exp\stimuli\deep\a.mp4",
     "deep//a.mp4"],
)  # fmt: skip
def test_stimuli_are_found_as_people_write_them(folder, stated):
    (folder.stimuli / "deep").mkdir()
    (folder.stimuli / "a.mp4").rename(folder.stimuli / "deep" / "a.mp4")
    assert locate_film(stated, folder.stimuli, folder.raw).as_posix() == "deep/a.mp4"
    for absent in ("a.mp4", "../a.mp4", "other/a.mp4"):
        with pytest.raises(DataError, match="no such file"):
            locate_film(absent, folder.stimuli, folder.raw)


def test_names_in_any_script(folder):
    wanted = {
        "clip 1.mp4": "clip_1_2", "clip_1.mp4": "clip_1", "part.mp4": "part.mp4", "part.mov": "part.mov", "电影.mp4": "电影",
        "电影 2.mp4": "电影_2", "हिन्दी.mp4": "हिन्दी", "deep/Ü (a).mp4": "deep_Ü_a", "##.mp4": "film",
    }  # fmt: skip
    assert name_films([Path(film) for film in wanted]) == {Path(film): name for film, name in wanted.items()}
    decomposed = "U\u0308ber uns.mp4"  # as macOS writes it; the table has the composed letter
    (folder.stimuli / "a.mp4").rename(folder.stimuli / decomposed)
    folder.write_events(1, [(4, 18, "\u00dcber uns.mp4")])
    folder.write_captions({"\u00dcber uns": ["x"] * SCANS} | {n: ["g"] * SCANS for n in "bct"})
    store = folder.prepare(validation_segments=0)
    assert "\u00dcber_uns" in store.order and store.captions("\u00dcber_uns")[0] == "x"
    np.testing.assert_array_equal(Windows(store, "train", 1).frames(np.array([0])).shape, (1, 6, 16, 16, 3))


def test_long_names_and_other_capitals(folder):
    films = [Path("\u6620" * 60, "\u753b" * 60 + f"{number}.mp4") for number in range(3)]  # 180 + 181 bytes in UTF-8
    names = name_films(films)
    assert len(set(names.values())) == 3 and all(len(name.encode()) <= 202 for name in names.values())
    folder.write_events(1, [(4, 18, "A.MP4")])
    assert folder.find().segments[0].name == "a"
    (folder.stimuli / "A.mp4").symlink_to("b.mp4")
    folder.refused("A.MP4", "no such file")


def test_captions_may_call_a_film_by_path_or_in_ascii():
    names = ("kurz/Über den Wolken", "kurz/Über den Wolken.mp4")
    films = {"Über_den_Wolken": Path(names[1]), "a_b": Path("a b.mp4"), "a-b": Path("a-b.mov")}
    assert other_names(films) == {
        "Über_den_Wolken": ("Über_den_Wolken", *names, "kurz_ber_den_Wolken"),
        "a_b": ("a_b", "a b", "a b.mp4"),
        "a-b": ("a-b", "a-b.mov"),
    }


def test_a_film_that_began_before_the_run_is_trimmed_on_request(folder):
    folder.write_events(1, [(-7, 18, "a.mp4")])  # scans from second -3 on: two are missing
    folder.write_events(2, [(42, 18, "b.mp4")])  # scans up to second 62, the last volume is at 60
    folder.refused("first scan of a.mp4", "second -3", "--trim-start", f"{folder.run(1)}:a")
    folder.refused("last scan of b.mp4", "--trim-end", fmriprep={"trim_start": True})
    folder.write_captions({name: [f"{name}{scan}" for scan in range(SCANS)] for name in "abct"})
    both = {"trim_start": True, "trim_end": True, "confounds": []}
    store = folder.prepare(fmriprep=both, validation_segments=0)
    assert (store.n_scans("a"), store.n_scans("b")) == (7, 8)
    assert store.captions("a") == [f"a{scan}" for scan in range(2, 9)] and store.captions("b")[-1] == "b7"
    place = 0.5 + np.arange(7)  # seconds 1, 3, … halfway between the volumes
    whole = folder.expected(1, [], first=0, n=VOLUMES)
    halfway = (whole[np.floor(place).astype(int)] + whole[np.ceil(place).astype(int)]) / 2
    _equals(store, "a", halfway)
    windows = Windows(store, "train", 1)
    index = np.flatnonzero(windows.segment == "a")[:1]
    level = windows.frames(index)[0, 0].mean()  # second 4 of a film of 4 frames/s whose frame i has level 3 i
    assert abs(level - 48) < 3 and abs(windows.frames_at_rate(index, 2)[0, 0].mean() - 48) < 3
    assert any("scans that some run lacks (2): a (2 of 9), b (1 of 9)" in line for line in store.remarks)


# Names, tables, sidecars


def test_zero_padded_runs_and_inheritance(folder):
    assert parse_name("sub-01_ses-002_run-02_echo-1_bold.nii") == {"sub": "01", "ses": "002", "run": "2", "echo": "1"}
    for number in range(1, 5):
        path = folder.raw / f"{folder.run(number)}_events.tsv"
        path.rename(path.with_name(path.name.replace("run-", "run-0")))
        (folder.func / f"{folder.run(number)}_space-fsLR_den-91k_bold.json").unlink()
    derived = {"SliceTimingCorrected": True, "StartTime": 0.5}
    (folder.root / "der" / "task-movie_bold.json").write_text(json.dumps(derived))
    (folder.root / "bids" / "task-movie_bold.json").write_text(json.dumps({"RepetitionTime": TR, "StartTime": 1.5}))
    own = folder.func / f"{folder.run(2)}_bold.json"
    own.write_text(json.dumps({"StartTime": 0.25}))
    source = folder.find()
    runs = source.notes["discover"]["runs"]
    first_s = {run: about["first_volume_s"] for run, about in runs.items()}
    assert first_s == dict.fromkeys(map(folder.run, (1, 3, 4)), 0.5) | {folder.run(2): 0.25}
    unsaid = _words(source)["runs whose sidecar does not state the TR"]
    assert len(unsaid) == 4 and f"{folder.run(1)} (2 s from task-movie_bold.json)" in unsaid
    (folder.root / "bids" / "task-movie_bold.json").unlink()
    assert runs[folder.run(1)] | {"tr_from": "its header"} == folder.find().notes["discover"]["runs"][folder.run(1)]
    content, origin = read_inherited(folder.bold(2).name, [folder.func, folder.root / "der"])
    assert content == {"StartTime": 0.25, "SliceTimingCorrected": True} and origin["StartTime"] == own
    (folder.func / "task-movie_run-2_events.tsv").write_text("")
    (folder.func / "sub-01_run-2_events.tsv").write_text("")
    with pytest.raises(DataError, match=r"expected one .*events\.tsv"):
        list(find_inherited(folder.bold(2).name, "events.tsv", [folder.func]))


def test_tables_as_programs_write_them(tmp_path):
    path = tmp_path / "events.tsv"
    text = 'onset\tduration\t"stim_file"\r\n3\tnan\t"my film.mp4"\r\n1\tN/A\ta.mp4\r\n9\t1\t\r\n\r\n'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        events = read_events(path)
        assert [(event.onset_s, event.duration_s, event.stimulus) for event in events] == [
            (1, None, "a.mp4"), (3, None, "my film.mp4")
        ]  # fmt: skip
    path.write_text('a\tb\n"x\t1\ny\t2\n')
    with pytest.raises(DataError, match="2 tab-separated values on line 2"):  # a lone quotation mark swallows no line
        read_table(path)


def test_one_file_for_each_recording(folder):
    for extra in ("desc-denoised_bold", "res-2_bold"):
        name = folder.bold(1).name.replace("_bold", f"_{extra}")
        shutil.copy(folder.bold(1), folder.func / name)
    (folder.func / f"._{folder.bold(1).name}").write_bytes(b"Mac OS X")
    source = folder.find()
    assert [len(segment.runs) for segment in source.segments] == [1] * 4
    assert len(_words(source)["files left out, which are other versions of a recording"]) == 2
    folder.bold(1).unlink()
    folder.refused("one file for each recording", "desc-denoised", "--exclude")
    assert len(folder.find(fmriprep={"exclude": ["*res-2*"]}).segments) == 4  # the advice works


def test_a_copy_is_no_repeat_even_of_a_test_film(folder):
    for path in [*folder.func.glob("*run-4_*"), *folder.raw.glob("*run-4_*")]:
        shutil.copy(path, path.with_name(path.name.replace("run-4_", "run-7_")))
    folder.refused("different recordings of t", "run-4", "run-7", "exclude")


@pytest.mark.parametrize(("factor", "noise"), [(1, 0), (3, 1e-3)])  # a copy, and one saved again in other numbers
def test_one_recording_is_not_that_of_two_films(folder, factor, noise):
    again = folder.data[1] * factor + np.random.default_rng(5).normal(0, noise, folder.data[1].shape)
    folder.write_run(3, again)
    folder.refused("different recordings of a and c", "run-1", "run-3", "exclude")


# Confounds, volumes, vertices


def test_confounds_without_values(folder):
    table = folder.confounds[1]
    lagged = ["n/a", "", *table["trans_x"][2:]]
    folder.write_confounds(1, {**table, "csf": ["n/a"] * VOLUMES, "trans_x_derivative2": lagged})
    wanted = {"confounds": ["trans_?", "rot_?", "csf", "white_matter", "*derivative2"]}
    for number in (2, 3, 4):
        folder.write_confounds(number, {**folder.confounds[number], "trans_x_derivative2": np.arange(VOLUMES) % 3})
    source = folder.find(fmriprep=wanted)
    assert _words(source)["columns of confounds left out, which hold no value"] == (f"{folder.run(1)}:csf",)
    store = folder.prepare(fmriprep=wanted)
    late = np.array([np.mean(table["trans_x"][2:])] * 2 + list(table["trans_x"][2:]))
    used = [values for name, values in table.items() if name != "csf"] + [late]
    _equals(store, "a", folder.expected(1, used))
    folder.write_confounds(1, {**table, "csf": [*table["csf"][:9], "n/a", *table["csf"][10:]]})
    with pytest.raises(DataError, match=r"column csf .*'n/a' on line 11; choose confounds without it .*--confounds"):
        read_confounds(folder.func / f"{folder.run(1)}_desc-confounds_timeseries.tsv", ["csf"], VOLUMES)


def test_unsteady_volumes_take_no_part(folder):
    data = folder.data[1].copy()
    data[0] *= 3
    folder.write_run(1, data)
    folder.write_confounds(1, {**folder.confounds[1], "non_steady_state_outlier00": np.eye(VOLUMES)[0]})
    kept = np.arange(VOLUMES) > 0
    plain = [folder.confounds[1][name] for name in COLUMNS]
    store = folder.prepare()
    _equals(store, "a", folder.expected(1, plain, kept))
    assert any("first volumes are not steady" in line and f"{folder.run(1)} (1)" in line for line in store.remarks)
    folder.write_events(1, [(-4, 18, "a.mp4")])  # the film's first scan is that volume
    with pytest.raises(DataError, match=r"steady volumes from second 2 to 60.*--trim-start"):
        folder.find()
    assert folder.find(fmriprep={"trim_start": True}).segments[0].n_scans == SCANS - 1
    only = {"confounds": ["csf", "non_steady_state*"]}
    assert folder.find(fmriprep=only | {"trim_start": True}).segments[0].runs[0].read.seen.all()


def test_vertices_without_signal_are_left_out_and_named(folder):
    silent = [3, 17]
    for number, value in ((2, 0.0), (4, np.nan)):  # of a training and of a test film
        data = folder.data[number].copy()
        data[:, silent[number // 4]] = value
        folder.write_run(number, data)
    store = folder.prepare()
    assert sorted(store.vertex) == sorted(np.delete(VERTEX, silent).tolist())
    line = f"vertices left out, which have no signal in some run (2): {VERTEX[3]}, {VERTEX[17]}"
    assert line in store.remarks and store.summary()["remarks"] == store.remarks
    _equals(store, "a", folder.expected(1, list(folder.confounds[1].values())))
    shutil.rmtree(folder.root / "store.zarr")
    data[:, :7] = 0
    folder.write_run(3, data)
    folder.refused("signal at nearly every vertex", "8 of 23 that never change", f"8 of them in {folder.bold(3)}")
    data[:, :7] = folder.data[1][:, :7]
    data[5, 2] = np.inf
    folder.write_run(3, data)
    folder.refused(str(folder.bold(3)), "1 of 23 vertices with NaN or infinite values")


def test_missing_content_is_named_with_the_command_that_fetches_it(folder):
    for path in (folder.bold(2), folder.raw / f"{folder.run(2)}_events.tsv", folder.stimuli / "b.mp4"):
        content = path.read_bytes()
        path.unlink()
        path.symlink_to("../.git/annex/objects/key")
        folder.refused("content was not fetched", f"datalad get '{path}'")
        path.unlink()
        path.write_bytes(content)


def test_a_spacing_that_holds_no_whole_frames(folder):
    folder.refused("3 frames/s x 1.49 s", "no fps up to 30", "--tr-s 2 --fps 3", error=SettingError, tr_s=1.49)
    folder.refused("choose fps 2, 4, 6, 8 (data.fps, --fps)", error=SettingError, tr_s=1.5)
    assert folder.find(tr_s=1.5, fps=2).segments[0].n_scans == 12  # the advice works
