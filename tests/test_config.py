"""Recipes: strict names, nearest suggestions, and a round trip through YAML."""

from pathlib import Path
from typing import IO

import pytest

from mindvideo.config import (
    Recipe,
    load_recipe,
    parse_recipe,
    read_recipe,
    read_yaml,
    save_recipe,
    setting_names,
    shipped_recipes,
    source_recipe,
)
from mindvideo.errors import SettingError
from mindvideo.sources import READERS


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("algin.lr=1", "align.lr"),
        ("align.learning_rat=1", "align."),
        ("reconstruct.guidance=3", "reconstruct.guidance_scale"),
    ],
)
def test_misspelt_setting_names_the_nearest(setting: str, nearest: str) -> None:
    with pytest.raises(SettingError, match=nearest.replace(".", r"\.")):
        load_recipe("demo", [setting])


@pytest.mark.parametrize("setting", [
    "align.steps=many", "align.lr=-1", "data.selection=best", "align.window=0", "align.lr=inf", "adapt.lr=0",
    "align.steps=true", "align.lr={1", "data.captions=[", "cotrain.batch_size=1",
    "align.betas=[0.9, 1]", "baseline.gan.betas=[-1, .9]", "baseline.gan.weight_decay=-1", "baseline.separable.weight_decay=-1",
    "baseline.gan.ema_decay=1", "baseline.separable.clip_grad=0", "baseline.gan.clip_grad=-1", "baseline.ridge.alphas=[]",
    "baseline.linear.alphas=[0]", "simulate.size=33", "seed=4294967296", "seed=-1",
])  # fmt: skip
def test_ill_typed_setting_is_refused_by_name(setting: str) -> None:
    with pytest.raises(SettingError, match=setting.split("=")[0].replace(".", r"\.")):
        load_recipe("demo", [setting])


@pytest.mark.parametrize(("setting", "said"), [
    ("reconstruct.controls=shuffled", "input should be a list, as [a, b], found 'shuffled'"),
    ("align=", "input should be name: value pairs, found None"),
    ("align=[lr, 1]", "input should be name: value pairs, found ['lr', 1]"),
    ("data.wen2018=5", "input should be name: value pairs, found 5"),
])  # fmt: skip
def test_types_are_called_as_in_a_recipe(setting: str, said: str) -> None:
    with pytest.raises(SettingError) as error:
        load_recipe("demo", [setting])
    assert said in str(error.value)


def test_readers_have_settings_of_their_own() -> None:
    recipe = parse_recipe({"data": {"source": "fmriprep", "fmriprep": {"task": "movie"}}})
    assert (recipe.data.own.task, recipe.data.own.resample) == ("movie", "linear")
    written = recipe.model_dump(mode="json")["data"]
    assert written["fmriprep"]["task"] == "movie" and not {"wen2018", "published", "store"} & written.keys()
    assert parse_recipe({"data": {"fmriprep": None, "source": "fmriprep"}}).data.own.task is None
    with pytest.raises(SettingError, match=r"'data\.fmriprep\.tsk' .* nearest valid name is 'data\.fmriprep\.task'"):
        load_recipe("demo", ["data.fmriprep.tsk=movie"])
    with pytest.raises(SettingError, match=r"setting 'data\.fmriprep\.high_pass_hz'.*greater than 0"):
        parse_recipe({"data": {"fmriprep": {"high_pass_hz": -1}}})
    with pytest.raises(SettingError, match=r"nearest valid name is 'data\.wen2018\.expect'"):  # its name in 0.1
        parse_recipe({"data": {"expect": None}})
    with pytest.raises(
        SettingError, match=r"setting 'data\.source'.*wen2018 or fmriprep or published or parcels or store"
    ):
        parse_recipe({"data": {"source": "openneuro"}})


@pytest.mark.parametrize("source", ["wen2018", "fmriprep", "published"])
def test_prepare_starts_from_the_recipe_of_the_source(source: str) -> None:
    alone, study = (recipe.data for recipe in (source_recipe(source, {}, []), load_recipe(source)))
    insisting = study.own.model_copy(update={"expect": None}) if source == "wen2018" else study.own
    assert alone == study.model_copy(update={source: insisting, "wen2018": alone.wen2018})


def test_scientific_notation_is_a_number() -> None:
    assert load_recipe("demo", ["align.lr=1e-4"]).align.lr == 1e-4


def test_a_file_can_build_on_a_shipped_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\nname: mine\nalign:\n  window: 3\n")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.align.window, recipe.align.steps) == ("mine", 3, load_recipe("demo").align.steps)


def test_misspelt_key_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\ncotrian:\n  steps: 3\n")
    with pytest.raises(SettingError, match="cotrain"):
        load_recipe(str(path))


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(SettingError, match="demo"):
        load_recipe("demoo")


def test_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["seed=5"])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("text", ["null", "~", "'null'", '"null"', ""])
def test_the_null_condition_is_a_name_in_yaml_too(text: str, tmp_path: Path) -> None:
    """YAML reads a bare null as nothing; nothing else than the empty caption of docs/method.md (The generator) can be meant."""
    (tmp_path / "own.yaml").write_text(f"base: demo\nreconstruct:\n  negative: {text}\n")
    for recipe in (load_recipe(str(tmp_path / "own.yaml")), load_recipe("demo", [f"reconstruct.negative={text}"])):
        assert recipe.reconstruct.negative == "null"
        save_recipe(recipe, tmp_path / "saved.yaml")
        assert read_recipe(tmp_path / "saved.yaml").reconstruct.negative == "null"


def test_own_data_hold_a_film_out_and_the_paper_none() -> None:
    held = {name: load_recipe(name).data.validation_segments for name in ("wen2018", "fmriprep", "demo")}
    assert held == {"wen2018": 0, "fmriprep": 1, "demo": 1}


def test_setting_names_cover_every_leaf() -> None:
    def leaves(content: dict, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in content.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key}
        return found

    every = {"simulate": {}, "distill": {}, "data": {name: {} for name in READERS} | {"subjects": [2, 3]}}
    assert leaves(parse_recipe(every).model_dump()) - {"data.store"} == set(setting_names())
    assert isinstance(Recipe().align.lr, float)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", "010"), ("on", "on"), ("no", "no"), ("y", "y"), ("1_000", "1_000"), ("12:30", "12:30"), ("1e3", 1000.0),
     ("-.5", -0.5), ("007e1", "007e1"), ("true", True), ("10", 10), ("0", 0), ("~", None), ("''", ""), ("<<", "<<"),
     ("2001-01-02", "2001-01-02"), ("[no, 08]", ["no", "08"])],
)  # fmt: skip
def test_values_mean_what_people_type(text: str, value: object) -> None:
    found = read_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_people_and_films_keep_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: fmriprep\ndata: {fmriprep: {participant: 010, task: on, test: [no, '1e4']}}\n")
    for recipe in (load_recipe(str(path)), load_recipe(str(path), ["data.fmriprep.participant=010"])):
        assert recipe.data.fmriprep.participant == "010"
        assert recipe.data.fmriprep.task == "on" and recipe.data.fmriprep.test == ("no", "1e4")
        save_recipe(recipe, tmp_path / "saved.yaml")
        assert read_recipe(tmp_path / "saved.yaml") == recipe


def test_bases_and_paths_count_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "common").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine" / "a.yaml").write_text("base: common/b.yaml\nname: mine\ndata: {raw: films, captions: c.csv}\n")
    (tmp_path / "mine" / "common" / "b.yaml").write_text("base: demo\nfoundation: ~/kit\nalign: {lr: 7e-4}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe("../mine/a.yaml", ["data.hcp=people", "pretrain.weights=/w"])
    assert (recipe.name, recipe.align.lr, recipe.foundation) == ("mine", 7e-4, "/home/me/kit")
    assert recipe.data.raw == tmp_path / "mine" / "films" and recipe.data.captions == f"{tmp_path}/mine/c.csv"
    assert recipe.data.hcp == tmp_path / "elsewhere" / "people" and str(recipe.pretrain.weights) == "/w"
    assert load_recipe("demo", ["data.captions=blip"]).foundation == "embedded"
    (tmp_path / "mine" / "common" / "b.yaml").write_text("base: ../common/../a.yaml\n")
    with pytest.raises(SettingError, match=r"its own base, by way of ../mine/a.yaml, common/b.yaml"):
        load_recipe("../mine/a.yaml")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for content, words in (
        (b"base: %s" % bytes(path), "its own base"),
        (b"name: \xff\xfe", "not valid YAML"),
        (b"name: [", "not valid YAML"),
        (b"align: {lr: 1e-4}\nalign: {steps: 5}\n", "the key 'align' is there twice"),
        (b"align: {lr: 1e-4, lr: 1e-5}\n", "the key 'lr' is there twice"),
        (b"- 1", "must be a mapping"),
    ):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=words):
            load_recipe(str(path))
        if words != "its own base":
            with pytest.raises(SettingError, match=words):
                read_recipe(path)


def test_saving_a_recipe_leaves_the_old_one_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(load_recipe("demo"), path)
    before = path.read_bytes()

    def break_off(content: object, handle: IO[str], *rest: object, **options: object) -> None:
        handle.write("name: ha")
        raise KeyboardInterrupt

    monkeypatch.setattr("yaml.dump", break_off)
    with pytest.raises(KeyboardInterrupt):
        save_recipe(load_recipe("demo", ["seed=5"]), path)
    assert path.read_bytes() == before


def test_recipes_from_before_a_setting_was_renamed(tmp_path):
    (tmp_path / "old.yaml").write_text("base: demo\nsimulate: {people: 5, person_runs: 3, person_run_s: 90}\n")
    simulate = load_recipe(str(tmp_path / "old.yaml")).simulate
    assert (simulate.pretrain_people, simulate.pretrain_runs, simulate.pretrain_run_s) == (5, 3, 90)
