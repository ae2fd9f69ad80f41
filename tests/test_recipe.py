"""Recipes: order and origins, what is refused and where, scalars that YAML 1.1 would misread."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdit_cli.errors import USAGE, EvditError, quoted
from vdit_cli.knobs import find_knob, flat, members, origins_told
from vdit_cli.recipe import GenerateOptions, Recipe, load


@pytest.fixture
def recipe_file(tmp_path: Path):
    """A recipe file of the given text."""

    def write(text: str) -> Path:
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "r.yaml"

    return write


def test_later_ones_win_and_are_remembered(recipe_file):
    """Default < file < --set < flag, key by key, each with its origin."""
    path = recipe_file("# what\ngenerate:\n  steps: 10\n  guidance: 2\n  fps: 8\n")
    recipe = load(path, ["generate.steps=20", "generate.fps = 9"], {"generate.steps": 30, "generate.num": None})
    options = recipe.generate
    assert (options.steps, options.guidance, options.fps, options.num) == (30, 2.0, 9, 1)
    assert options.where("steps") == "--steps 30"
    assert options.where("guidance") == f"{path}:4 generate.guidance"
    assert options.where("fps") == '--set "generate.fps = 9"'
    assert options.where("num") is None
    assert recipe.resolved("generate")["generate.num"] == {"value": 1, "origin": "default"}
    assert recipe.resolved("generate")["generate.steps"] == {"value": 30, "origin": "--steps 30"}


def test_sections_inside_sections(recipe_file):
    """Their keys are dotted and their origins stand where they are read."""
    path = recipe_file("train_shapes:\n  seed: 3\n  vae:\n    iterations: 5\n    hidden_size_mult: [1, 2]\n")
    options = load(path, ["train_shapes.transformer.layers=2"]).train_shapes
    assert (options.seed, options.vae.iterations, options.vae.hidden_size_mult) == (3, 5, (1, 2))
    assert options.transformer.layers == 2
    assert options.vae.where("iterations") == f"{path}:4 train_shapes.vae.iterations"
    assert options.where("vae.iterations") == options.vae.where("iterations")
    assert options.values()["vae"]["iterations"] == 5


def test_numbers_of_a_text_may_be_a_list(recipe_file):
    """From a file and a setting, as the text with commas is; a list of anything else, or of nothing, is no text."""
    path = recipe_file("generate:\n  timesteps: [800, 400]\n")
    assert load(path, []).generate.timesteps == load(None, ["generate.timesteps=[800,400]"]).generate.timesteps
    assert load(path, []).generate == load(None, ["generate.timesteps=800,400"]).generate
    for setting in ("timesteps=[]", "timesteps=[1.5]", "timesteps=[true]", "timesteps=[a]", "model=[1, 2]"):
        with pytest.raises(EvditError, match="it must be text"):
            load(None, [f"generate.{setting}"])


@pytest.mark.parametrize(
    ("text", "rate"),
    [("24", "24"), ("23.976", "2997/125"), ("24000/1001", "24000/1001"), ('"30"', "30")],
)
def test_a_rate_is_exact(recipe_file, text: str, rate: str):
    """From a file, a setting and a flag alike; a whole one is a number of JSON, another one text."""
    path = recipe_file(f"generate:\n  fps: {text}\n")
    flagged = load(None, (), {"generate.fps": text.strip('"')})
    for recipe in (load(path), load(None, [f"generate.fps={text}"]), flagged):
        assert recipe.generate.fps == Fraction(rate)
        assert recipe.resolved("generate")["generate.fps"]["value"] == recipe.generate.values()["fps"]
    kept = json.loads(json.dumps(flagged.generate.values()))["fps"]
    assert kept == (int(rate) if rate.isdigit() else rate)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "generate:\n", "generate: {}\n", "---\n"])
def test_files_that_set_nothing(recipe_file, text: str):
    """Are no error."""
    assert load(recipe_file(text)) == Recipe()


def test_scalars_mean_what_they_look_like(recipe_file):
    """YAML 1.1 reads 1:7 as 67, 1e-4 as text, `no` as false and 010 as 8."""
    path = recipe_file("generate: {masks: 1:7, guidance: 1e-4, negative: no, model: 010, text_encoder: ~}\n")
    options = load(path).generate
    assert (options.masks, options.guidance, options.negative) == ("1:7", 1e-4, "no")
    assert (options.model, options.text_encoder) == ("010", None)
    with pytest.raises(EvditError, match=r"seed is '010': it must be a whole number"):
        load(recipe_file("generate: {seed: 010}\n"), (), {})


def test_a_share_is_at_most_the_whole():
    """Of steps, clips and captions, and what an average keeps: 1.1 of them would be taken for another rule."""
    found = []
    for key, value in flat(Recipe()):
        if isinstance(value, float) and key.endswith(("_share", "_keep", "dropout", "left_out", "two_objects")):
            found.append(key)
            with pytest.raises(EvditError, match="at most 1"):
                load(None, [f"{key}=1.1"], {})
    assert len(found) > 12


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("generate:\n  steps: 1\n  stepps: 2\n", 3, "unknown key 'generate.stepps'"),
        ("generate:\n  steps: 1\n  fps: 2\n  steps: 2\n", 4, "stands twice"),
        ("generate:\n  steps: 0\n", 2, "at least 1"),
        ("generate:\n  steps: 1.5\n", 2, "a whole number"),
        ("generate:\n  steps: true\n", 2, "a whole number"),
        ("generate:\n  guidance: .nan\n", 2, "a finite number"),
        ("generate:\n  fps: 0\n", 2, "at least 1/600, at most 1000"),
        ("generate:\n  fps: true\n", 2, "a number or a fraction such as 24000/1001"),
        ("generate:\n  fps: [24]\n", 2, "a number or a fraction such as 24000/1001"),
        ("generate:\n  guidance: -.inf\n", 2, "a finite number"),
        ("generate:\n  dtype: int8\n", 2, "auto, float32, bfloat16 or float16"),
        ("generate:\n  strict: yes\n", 2, "true or false"),
        ("generate:\n  prompt: !!python/object/apply:os.getcwd []\n", 2, "unknown key"),
        ("train_shapes:\n  vae:\n    hidden_size_mult: !!python/tuple [1]\n", 3, "can't be read"),
        ("train_shapes:\n  vae:\n    hidden_size_mult: [1, x]\n", 3, "each item a whole number"),
        ("- a\n", 1, "must be a mapping"),
        ("generate: [1]\n", 1, "must be a mapping"),
        ("generate:\n\tsteps: 1\n", 2, "not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
        ("generate: &a\n  steps: *a\n", 1, "an alias stands inside this value"),
    ],
)
def test_what_a_file_may_not_say(recipe_file, text: str, line: int, told: str):
    """Exit 2, with the file and the line."""
    path = recipe_file(text)
    with pytest.raises(EvditError) as error:
        load(path)
    assert told in error.value.what and error.value.exit_code == 2
    assert (error.value.where or "").split(" ")[0] == f"{path}:{line}"


def test_an_unknown_key_gets_the_nearest():
    """By its full path."""
    with pytest.raises(EvditError) as error:
        load(None, ["generate.sheduler=ddim"])
    assert error.value.next_steps == ("generate.scheduler",)


def test_flags_are_checked_too():
    """And told as they were typed."""
    for key, value, told in [
        ("generate.video_frames", 0, "--frames 0"),
        ("generate.guidance", float("nan"), "--guidance nan"),
        ("generate.dtype", "int 8", "--dtype 'int 8'"),
    ]:
        with pytest.raises(EvditError) as error:
            load(None, flags={key: value})
        assert error.value.where == told
    told = load(None, flags={"generate.metadata": False, "generate.lora": ["a", "b c:0.5"]}).generate
    assert (told.where("metadata"), told.where("lora")) == ("--no-metadata", "--lora a --lora 'b c:0.5'")


@pytest.mark.parametrize(
    ("given", "place", "step"),
    [
        ({"flags": {"generate.checkpoint": ""}}, "--checkpoint ''", "no --checkpoint"),
        ({"flags": {"generate.lora": ["a", ""]}}, "--lora a --lora ''", "no --lora"),
        ({"flags": {"analyze.layers": ""}}, "--layers ''", "no --layers"),
        ({"sets": ["distill_mlcd.kernel=''"]}, "--set \"distill_mlcd.kernel=''\"", "no --set distill_mlcd.kernel"),
        ({"sets": ["generate.lora=['']"]}, "--set \"generate.lora=['']\"", "no --set generate.lora"),
    ],
)
def test_empty_text_is_refused(given: dict, place: str, step: str):
    """It is what `--checkpoint=$RUN` gives where RUN is not set; a negative prompt alone may be nothing."""
    with pytest.raises(EvditError, match="is empty") as error:
        load(**given)
    assert (error.value.exit_code, error.value.where, error.value.next_steps) == (2, place, (step,))
    assert load(None, flags={"generate.negative": ""}).generate.negative == ""


def test_an_error_at_a_flag_tells_where_its_value_was_set(recipe_file):
    """The recipe's line or the setting; a flag as it was told, and a flag that nobody set."""
    path = recipe_file("generate:\n  video_frames: 8\n")
    options = load(path, ["generate.kernel=flash"], {"generate.lora": ["a", "b"]}).generate
    for told, place in [
        ("--frames 8", f"{path}:2 generate.video_frames"),
        ("--kernel flash", "--set generate.kernel=flash"),
        ("--lora b", "--lora b"),
        ("--device tpu", "--device tpu"),
        ("a prompt", "a prompt"),
        (None, None),
    ]:
        with pytest.raises(EvditError) as error, origins_told(options):
            raise EvditError("", where=told)
        assert error.value.where == place


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "folder"])
def test_files_that_can_not_be_read(tmp_path: Path, content: object):
    """Missing, not UTF-8, a folder."""
    path = tmp_path / "r.yaml"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(EvditError, match="can't be read|it is not UTF-8"):
        load(path)


def test_a_setting_without_a_value():
    """Is refused with an example."""
    with pytest.raises(EvditError, match="sets nothing"):
        load(None, ["generate.steps"])


@given(st.text())
def test_any_text_is_a_recipe_or_a_clear_error(text: str):
    """Never another exception."""
    try:
        load(None, [f"generate={text}"])
        load(None, [f"generate.negative={text}"])
    except EvditError as error:
        assert error.where and error.where.startswith("--set ")


def test_every_default_passes_its_own_check():
    """A default given as a flag is taken, and every knob has help."""
    for key, value in flat(Recipe()):
        if value is not None:
            assert dict(flat(load(None, flags={key: value})))[key] == value
    assert GenerateOptions() == load().generate


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("generate: {model: null}", ":1 generate.model", "generate.model is null: it must be text"),
        ("generate:\n  seed: ~", ":2 generate.seed", "generate.seed is null: it must be a whole number"),
        ("generate:\n  seed: 3\ngenerate.seed: 4", ":3 generate.seed", "'generate.seed' stands twice: in {file}:2"),
        ("generate.seed: 4\ngenerate:\n  seed: 3", ":3 generate.seed", "'generate.seed' stands twice: in {file}:1"),
        ("generate:\n  model: !!python/name:os.system x", ":2 generate.model", "the tag '.*python/name:os.system'"),
        ("generate:\n  negative: !mine red", ":2 generate.negative", "the tag '!mine' can't be read"),
        ("generate: !mine {seed: 3}", ":1 generate", "the tag '!mine' can't be read"),
        ("distill_mlcd:\n  teacher_points: [2, !mine 3]", ":2 distill_mlcd.teacher_points", "the tag '!mine'"),
    ],
)
def test_what_could_only_be_guessed_is_refused(recipe_file, text: str, place: str, says: str):
    """A value that can't be unset, a key as section and dotted, a tag that asks for something: file, line and key."""
    file = recipe_file(text)
    with pytest.raises(EvditError, match=says.format(file=file)) as caught:
        load(file)
    assert caught.value.where == f"{file}{place}"


@pytest.mark.parametrize(
    "setting", ["=", " = 3", "generate=", "generate=null", "generate.seed=", "generate.model=null"]
)
def test_a_setting_that_sets_nothing_is_refused(setting: str):
    """Each by name."""
    with pytest.raises(EvditError) as caught:
        load(None, [setting])
    assert caught.value.where == f"--set {quoted(setting)}"


def test_a_value_that_may_be_unset_is(recipe_file):
    """And text may be quoted, or tagged as text."""
    options = load(recipe_file("generate: {checkpoint: null, model: !!str 12, negative: 'null'}")).generate
    assert (options.checkpoint, options.model, options.negative) == (None, "12", "null")


def numbers_of(kind: Any) -> set[Any]:
    """The types of numbers that a knob takes, by itself or in a list."""
    return {int, float, Fraction} & {each for member in members(kind) for each in (member, *get_args(member))}


NUMBERS = [key for key, _ in flat(Recipe()) if numbers_of(find_knob(Recipe, key, key)[0])]
"""Every knob that takes a number, or several."""


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_an_upper_bound(key: str):
    """Told with the bound, as a recipe, a setting and a flag: no machine holds ten to the thirtieth of anything."""
    is_list = get_origin(find_knob(Recipe, key, key)[0]) is tuple
    for huge in (10**31, 10**400, 1e300):
        with pytest.raises(EvditError, match=f"{key} is .* it must be .*at most") as caught:
            load(None, (), {key: (huge,) if is_list else huge})
        assert caught.value.exit_code == USAGE and len(caught.value.text()) < 20_000
    with pytest.raises(EvditError, match="at most|can't be read"):
        load(None, [f"{key}={[10**31] if is_list else 10**31}"])


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("generate.seed", 2**63 - 1),
        ("generate.num", 10**6),
        ("generate.video_frames", 2**16),
        ("generate.height", 2**16),
        ("distill_mlcd.iterations", 10**6),
        ("train_shapes.text.layers", 100),
        ("train_shapes.transformer.layers", 100),
        ("bench.model.heads", 1000),
    ],
)
def test_bounds_are_those_that_a_machine_could_hold(key: str, most: int):
    """The bound itself is taken, one more is not."""
    assert dict(flat(load(None, (), {key: most})))[key] == most
    with pytest.raises(EvditError, match=f"{key} is {most + 1}: it must be .* at most {most}$"):
        load(None, (), {key: most + 1})


BOMB = "generate.scheduler=[" + "&a0 [x]," + ",".join(f"&a{i} [*a{i - 1},*a{i - 1}]" for i in range(1, 40)) + "]"
SETTINGS = [
    (BOMB, "an alias stands inside this value"),
    ("distill_mlcd.milestones=" + "[" * 20_000, "not YAML"),
    ('generate.model="a\\0b"', "signs that UTF-8 can write, none of them zero"),
    ("generate.negative=" + "x" * 10_001, "text of at most 10000 signs"),
    ('generate.negative="\\ud800"', "text of at most 10000 signs that UTF-8 can write"),
    ("generate.negative=\udcff", "unacceptable character"),
    ("distill_mlcd.segment_shares=[" + "1," * 10_001 + "]", "a list"),
]


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=[words for _, words in SETTINGS])
def test_settings_without_an_end_are_refused(setting: str, words: str, tmp_path: Path):
    """By --set and, where YAML can hold it, by a recipe: aliases of aliases, brackets, long text, what UTF-8 lacks."""
    with pytest.raises(EvditError, match=words) as caught:
        load(None, [setting])
    assert caught.value.exit_code == USAGE and (caught.value.where or "").startswith("--set ")
    key, _, text = setting.partition("=")
    section, _, name = key.partition(".")
    (tmp_path / "r.yaml").write_text(f"{section}:\n  {name}: {text}\n", encoding="utf-8", errors="replace")
    if "\udcff" not in text:
        with pytest.raises(EvditError, match=f"{words}|not YAML") as caught:
            load(tmp_path / "r.yaml")
        assert f"{tmp_path / 'r.yaml'}:2" in (caught.value.where or "") or "not YAML" in caught.value.what


@pytest.mark.parametrize(
    ("text", "told", "step"),
    [
        ("base: &b {steps: 8}\ngenerate: *b\n", "unknown key 'base'", "a section: generate, analyze, "),
        ("generate:\n  <<: {steps: 8}\n", "'<<' merges nothing here: write out the keys", ""),
        ("generatr: {steps: 8}\n", "unknown key 'generatr'", "generate"),
        ("generate: {" + "x" * 900 + ": 8}\n", "unknown key 'generate.xxx", "generate."),
    ],
)
def test_what_yaml_shares_is_not_taken_for_a_key(recipe_file, text: str, told: str, step: str):
    """A holder of an anchor and a merge; a misspelt key still gets the nearest."""
    with pytest.raises(EvditError) as caught:
        load(recipe_file(text))
    assert told in caught.value.what and " ".join(caught.value.next_steps).startswith(step)
