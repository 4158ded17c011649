"""Every key of a recipe x every value that it cannot have: the key is named, with what is allowed; nothing breaks.

The keys and their bad values are made from the dataclasses, so that a new key is tried too.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from diffusion_feedback.cli.main import main
from diffusion_feedback.config.meaning import check_values
from diffusion_feedback.config.parsing import build_parser, load_recipe, parse
from diffusion_feedback.config.recipe import SECTIONS, Recipe
from diffusion_feedback.config.wording import full_key, key_notes, known_keys
from diffusion_feedback.documents import parse_yaml, read_object
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import parse_json
from diffusion_feedback.values import Range

BASE: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "m"}, "data": {"train": "d"}, "output_dir": "o",
    "objective": {"name": "dpo", "beta": 5.0}, "optimizer": {"name": "adamw"},
}  # fmt: skip
HUGE = 10**30
NUMBERS: list[Any] = [-1, -0.5, HUGE, -HUGE, 10**400, math.inf, -math.inf, math.nan]
# What each kind of value cannot be, of another type than its own.
FOREIGN: dict[Any, list[Any]] = {
    int: ["abc", 0.5], float: ["abc", [1]], str: [["a"], {}], bool: ["maybe", 2], list: ["a", [[]]], tuple: [5, [0, 1, 2]],
    Literal: ["none of them", 5], types.UnionType: [],  # any text, or a list
}  # fmt: skip


def hints() -> dict[str, Any]:
    found = {"output_dir": str}
    for section, kind in SECTIONS.items():
        found |= {f"{section}.{name}": hint for name, hint in typing.get_type_hints(kind).items()}
    return found


HINTS = hints()
RANGES = {key: note for key, said in key_notes().items() for note in said if isinstance(note, Range)}


def bare(key: str) -> Any:
    """The type of ``key`` without its null."""
    hint = HINTS[key]
    if type(None) in typing.get_args(hint):
        first, *others = [each for each in typing.get_args(hint) if each is not type(None)]
        hint = types.UnionType if others else first
    return typing.get_origin(hint) or hint


def changed(recipe: Recipe, key: str, value: Any) -> Recipe:
    section, _, name = key.rpartition(".")
    if not section:
        return dataclasses.replace(recipe, **{name: value})
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{name: value})})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def parser() -> Any:
    return build_parser("dfb train", "")


@pytest.fixture(scope="module")
def plain(parser: Any, folder: Path) -> Recipe:
    """A recipe of defaults, which are in range."""
    (folder / "plain.yaml").write_text(yaml.safe_dump(BASE))
    return parse(parser, ["--config", str(folder / "plain.yaml")])[0]


def tried(parser: Any, recipe: Any, folder: Path) -> str:
    """What is said of a recipe; nothing where it is taken."""
    path = folder / "recipe.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    try:
        parse(parser, ["--config", str(path)])
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", HINTS)
def test_values_of_another_type(key: str, parser: Any, folder: Path) -> None:
    section, _, name = key.rpartition(".")
    values = FOREIGN[bare(key)] + [None] * (type(None) not in typing.get_args(HINTS[key]))
    for value in values:
        recipe = {**BASE, section: {**BASE.get(section, {}), name: value}} if section else {**BASE, name: value}
        said = tried(parser, recipe, folder)
        assert key in said, (value, said)
        assert "\n  -> " in said
        assert "<class" not in said


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("key", RANGES)
def test_numbers_out_of_range(key: str, value: Any, plain: Recipe) -> None:
    """The range of each key is its row; whatever it is, no key takes what is not finite or cannot be counted."""
    wrong = changed(plain, key, [value, 1.0] if bare(key) is tuple else value)
    if value in RANGES[key]:
        assert abs(value) <= HUGE
        check_values(wrong)
        return
    with pytest.raises(UserError, match=rf"^{key}: got ") as told:
        check_values(wrong)
    assert told.value.remedy.startswith("allowed: ")


@pytest.mark.parametrize("key", [key for key in HINTS if bare(key) in (str, list)])
def test_texts_that_name_nothing(key: str, plain: Recipe) -> None:
    for value in ("", "  ", "a\0b"):
        wrong = changed(plain, key, [value] if bare(key) is list else value)
        if value == "" and key in ("rollouts.reward", "rounds.scorer", "rounds.heldout_prompts", "validation.prompts"):
            check_values(wrong)
            continue
        with pytest.raises(UserError, match=rf"^{key}: got "):
            check_values(wrong)


def test_every_number_has_a_range() -> None:
    assert {key for key in HINTS if {int, float, tuple} & {bare(key)}} == set(RANGES)


CATALOGUED = [
    *((kind, value) for kind in ("objective", "optimizer") for value in ("dpo", 5, [], None, {}, {"name": 5}, {"name": "x"})),
    *(("objective", {"name": "dpo", "beta": value}) for value in (math.inf, math.nan, 10**400, "abc", True, [], {}, None)),
    *(("optimizer", {"name": "adamw", "weight_decay": value}) for value in (math.inf, math.nan, "abc", True, [], None)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), CATALOGUED)
def test_objectives_and_optimizers_that_are_none(kind: str, value: Any, parser: Any, folder: Path) -> None:
    said = tried(parser, {**BASE, kind: value}, folder)
    assert kind in said
    assert "\n  -> " in said
    assert "<class" not in said


DAMAGED = {
    "a key twice": ("output_dir: a\noutput_dir: b\n", ["'output_dir' stands twice, in lines 1 and 2"]),
    "a section twice": ("training: {seed: 1}\nmodel: {}\ntraining: {}\n", ["'training' stands twice, in lines 1 and 3"]),
    "a key of a section twice": ("training:\n  seed: 1\n  seed: 2\n", ["'seed' stands twice, in lines 2 and 3"]),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, ["deep"]),
    "deeper": ("a: " + "[" * 101 + "]" * 101, ["nested more than 100 levels"]),
    "a bomb": ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrstu", "bcdefghijklmnopqrstuv", strict=True)), ["aliases stand for more"]),
    "a circle": ("a: &a [*a]\n", ["lies in itself"]),
    "a python object": ("a: !!python/object/apply:os.system [ls]\n", ["not valid YAML"]),
    "an endless number": ("training: {seed: " + "9" * 5000 + "}\n", ["not valid YAML", "5000"]),
    "an open bracket": ("a: [1, 2\n", ["line 2", "not valid YAML"]),
    "a tab": ("a:\n\tb: 1\n", ["line 2", "not valid YAML"]),
    "a list": ("- a\n", ["found list"]),
    "nothing": ("", ["found NoneType"]),
    "two documents": ("a: 1\n---\nb: 2\n", ["not valid YAML"]),
    "a section of nothing": ("training:\n", ["training: got nothing", "leave it out"]),
    "a section of a list": ("training: [1]\n", ["training: got [1]"]),
    "an unknown key": ("trainin: 1\n", ["unknown key 'trainin'", "training"]),
    "an unknown key inside": ("training: {sede: 1}\n", ["unknown key 'training.sede'", "did you mean 'seed'"]),
    "a list as a key": ("? [a]\n: 1\n", ["not valid YAML"]),
    "a control character": ("a: \x07\n", ["not valid YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_recipes_that_are_none(name: str, parser: Any, folder: Path) -> None:
    text, wanted = DAMAGED[name]
    said = tried(parser, text, folder)
    assert all(words in said for words in ["recipe.yaml", *wanted])


@pytest.mark.parametrize(
    "data", [b"output_dir: \xff\n", "output_dir: ü".encode("latin-1"), b"\x00\x01", "a: b".encode("utf-16")]
)
def test_recipes_that_are_not_utf_8(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(data)
    with pytest.raises(UserError, match="not UTF-8 text|not valid YAML"):
        load_recipe(tmp_path / "recipe.yaml")


def test_anchors_may_be_used(tmp_path: Path) -> None:
    text = yaml.safe_dump(BASE) + "training: &t {seed: 3}\nvalidation: {<<: *t}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.training.seed, recipe.validation.seed) == (3, 3)


def test_a_recipe_under_another_locale(tmp_path: Path) -> None:
    """As on a machine whose locale is plain C: the recipe is UTF-8 all the same, and so is what is printed."""
    (tmp_path / "rezept.yaml").write_text(
        yaml.safe_dump({**BASE, "output_dir": "läufe/größe"}, allow_unicode=True), "utf-8"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    argv = [
        sys.executable,
        "-m",
        "diffusion_feedback",
        "train",
        "--config",
        str(tmp_path / "rezept.yaml"),
        "--print_config",
    ]
    done = subprocess.run(argv, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"l\\xe4ufe/gr\\xf6\\xdfe" in done.stdout


OPTIONS = {
    "--output_dri x": "did you mean --output_dir?",
    "--batch_size 3": "did you mean --rollouts.batch_size or --rounds.batch_size?",
    "--seed 3": "did you mean --training.seed or --validation.seed?",
    "--learning_rat 1": "did you mean --training.learning_rate?",
    "--training.learning 1": "did you mean --training.learning_rate?",
    "--training.learning_rat 1": "did you mean --training.learning_rate?",
    "--resum": "did you mean --resume?",
    "--confi x": "did you mean --config or --model.config?",
    "--nonsense 1": "--help all lists every key",
    "--training 5": "set its keys one by one",
    "stray": "'stray': is no option",
    "training.seed": "without its dashes",
    "--training.seed": "--training.seed: has no value",
    "--training.seed 1.5": "allowed: a whole number",
    "--training.learning_rate abc": "allowed: a number",
    "--model.tuning qlora": "allowed: lora or full",
    "--model.lora_targets [[]]": "allowed: a list of texts",
    "--data.cache maybe": "allowed: true or false",
    "--training.timestep_range 5": "allowed: 2 numbers",
    "--model.lora_alpha x": "allowed: a number, or null",
    "--objective {name:dpo,name:ipo}": "stands twice",
    "--objective [": "not valid YAML",
}


@pytest.mark.parametrize("flags", OPTIONS)
def test_flags_that_do_not_exist_or_fit(flags: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    own = [part.replace(":", ": ") if part.startswith("{") else part for part in flags.split(" ")]
    assert main(["train", "--config", str(folder / "base.yaml"), *own, "--print_config"]) == 2
    said = capsys.readouterr().err
    assert OPTIONS[flags] in said
    assert "<class" not in said
    assert "usage:" not in said


@pytest.mark.parametrize("key", [key for key in known_keys() if "." in key and key != "data.validation"])
def test_every_key_without_its_section_is_found(key: str, parser: Any) -> None:
    """Taken where one section has it; else every section that has it is named."""
    name = key.rpartition(".")[2]
    sections = [other for other in known_keys() if other.partition(".")[2] == name]
    options = ["config", "resume"]
    assert full_key(name, options) == (key if len(sections) == 1 and name not in options else name)
    if len(sections) > 1:
        with pytest.raises(UserError, match=f"unknown option --{name}") as raised:
            parse(parser, [f"--{name}", "1"])
        assert all(f"--{other}" in raised.value.remedy for other in sections)


def test_homes_in_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    argv = ["--model.pretrained_model_name_or_path", "~/m", "--data.train", "~/d", "--output_dir=~/o"]
    recipe, _ = parse(build_parser("dfb train", ""), argv)
    found = (recipe.model.pretrained_model_name_or_path, recipe.data.train, recipe.output_dir)
    assert found == (f"{tmp_path}/m", f"{tmp_path}/d", f"{tmp_path}/o")
    with pytest.raises(UserError, match="no such home folder"):
        parse(build_parser("dfb train", ""), [*argv, "--output_dir", "~nobody-of-this-name/x"])


TWICE = ('{"a": 1, "a": 2}', '{"x": {"a": 1, "b": 2, "a": 1}}', '[{"a": 1, "a": 1}]')


@pytest.mark.parametrize("text", TWICE)
def test_json_with_a_key_twice(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows.jsonl, line 3.*two values of 'a'"):
        parse_json(text, "rows.jsonl, line 3", "correct it")
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json: damaged: .*two values of 'a'"):
        read_object(tmp_path / "results.json", "run again")
    with pytest.raises(UserError, match="flags: 'a' stands twice"):
        parse_yaml(text, "flags")
