"""Finding files: links are followed, loops end, hidden files are passed over, and what is not there is named."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from mindvideo.data.arrays import read_npy, read_pt
from mindvideo.data.captions import read_captions
from mindvideo.data.readers.hcp import find_sources
from mindvideo.data.series import read_layout
from mindvideo.data.video import probe
from mindvideo.errors import DataError
from mindvideo.evaluate.results import read_clip
from mindvideo.files import describe_absence, hash_file, link_folder, list_files, walk_files


def test_linked_files_are_not_flushed_again(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "whole").write_text("one")
    (tmp_path / "a" / "log.jsonl").write_text("grows")
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    link_folder(tmp_path / "a", tmp_path / "b")
    assert sorted(flushed) == sorted((tmp_path / place).stat().st_ino for place in ("b", "b/log.jsonl"))
    assert (tmp_path / "b" / "whole").samefile(tmp_path / "a" / "whole")


def test_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "set" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for name in ("set/a.txt", "set/b/c.txt", "set/._a.txt", "set/.DS_Store", "elsewhere/deep/d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "set" / "linked").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to("../set")
    found = [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path / "set")]
    assert found == ["set/a.txt", "set/b/c.txt", "set/linked/deep/d.txt"]
    (tmp_path / "set" / "b" / "gone.nii").symlink_to(".git/annex/objects/key")
    assert "b/gone.nii" in [row[0] for row in list_files(tmp_path / "set")]
    (tmp_path / "set" / "b" / "gone.nii").unlink()
    assert sum(path.name.startswith(".") for path in walk_files(tmp_path / "set", hidden=True)) == 2
    before = list_files(tmp_path / "set")
    assert [row[:2] for row in before] == [["a.txt", 9], ["b/c.txt", 11], ["linked/deep/d.txt", 20]]
    (tmp_path / "elsewhere" / "deep" / "d.txt").write_text("another length")
    assert list_files(tmp_path / "set") != before  # what lies behind a link counts
    assert list_files(tmp_path / "none") == list_files(None) == []


def test_what_is_missing_is_named(tmp_path):
    annex, plain, whole = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    annex.symlink_to(".git/annex/objects/aB/Cd/MD5E-s12--01.mp4")
    plain.symlink_to("gone.mp4")
    whole.write_bytes(b"content")
    assert "datalad get" in describe_absence(annex) and str(annex) in describe_absence(annex)
    assert "a link to gone.mp4, which is not there" in describe_absence(plain)
    assert describe_absence(whole) == "" and "no such file" in describe_absence(tmp_path / "d.mp4")
    whole.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert "git lfs pull" in describe_absence(whole)
    whole.write_text("/annex/objects/MD5E-s12--01.mp4\n")
    assert "datalad get" in describe_absence(whole)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("fmri_train_subject1.npy", read_npy),
        ("subj01_train_fmri.pt", read_pt),
        ("HCP_visual_voxel.npz", lambda path: find_sources(path.parent)),
        ("100307/MNINonLinear/Results/REST/REST_Atlas_MSMAll.dtseries.nii", lambda path: find_sources(path.parents[4])),
        ("seg1.mp4", probe),
        ("seg1.dtseries.nii", read_layout),
        ("captions.csv", lambda path: read_captions(path, {})),
        *((f"clip.{ending}", read_clip) for ending in ("gif", "npy", "png", "mp4")),
    ],
)
def test_every_reader_names_the_command_that_fetches_what_is_missing(tmp_path, name, read):
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    for command, place in (
        (
            "git lfs pull",
            lambda: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ),
        ("datalad get", lambda: path.symlink_to(".git/annex/objects/aB/Cd/MD5E-s12--01")),
    ):
        place()
        with pytest.raises(DataError, match=f"not fetched; run: {command} .*{re.escape(path.name)}"):
            read(path)
        path.unlink()


def test_hash(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 1_500_001)
    assert hash_file(tmp_path / "f") == hashlib.sha256(b"x" * 1_500_001).hexdigest()


def test_what_a_study_writes_is_no_part_of_its_data_by_whatever_path(tmp_path, monkeypatch):
    raw = tmp_path / "data"
    (raw / "runs" / "one").mkdir(parents=True)
    (raw / "film.mp4").write_text("a")
    (raw / "runs" / "one" / "done.json").write_text("b")
    (tmp_path / "link").symlink_to(raw)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for place in (raw, tmp_path / "link", Path("../data")):
        for without in (raw / "runs" / "one", tmp_path / "link" / "runs" / "one", Path("../data/runs/one")):
            assert [name for name, *_ in list_files(place, without)] == ["film.mp4"], (place, without)
