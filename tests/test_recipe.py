"""Recipes: every mistake is one message that names the key, the value and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.errors import RecipeError
from hwnas.recipe import changed_keys, load_recipe, parse_recipe
from hwnas.template import new_recipe
from hwnas.units import parse_ms

MINIMAL = 'name = "a"\n'


@pytest.mark.parametrize(
    ("text", "ms"),
    [("2 ms", 2.0), ("500us", 0.5), ("0.01 s", 10.0), ("1e-1 ms", 0.1), (" .5 ms ", 0.5), ("3 µs", 0.003)],
)
def test_times_are_read_in_milliseconds(text: str, ms: float) -> None:
    assert parse_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    "value", [2, 2.0, "2", "ms", "2 parsecs", "2 MS", "-2 ms", "0 ms", "", None, "1 2 ms", "nan ms"]
)
def test_other_times_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"ms|above zero"):
        parse_ms(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["key name is missing"]),
        ("name = ", ["not valid TOML"]),
        ('name = "a b"', ["name", "'a b'"]),
        ('name = "../a"', ["name", "'../a'"]),
        (MINIMAL + "sede = 1", ["unknown key sede = 1", "did you mean seed?"]),
        (MINIMAL + "[serch]\n", ["unknown key serch", "did you mean search?"]),
        (MINIMAL + '[search]\nlatancy = "1 ms"', ["search.latancy = '1 ms'", "did you mean latency?"]),
        (MINIMAL + '[search]\nlatency = "1 km"', ["search.latency = '1 km'", "'km' is not a time", "us, ms or s"]),
        (MINIMAL + "[search]\nlatency = 1.5", ["search.latency = 1.5", "with its unit"]),
        (MINIMAL + '[search]\nscore = "nasswot"', ["search.score = 'nasswot'", "did you mean 'naswot'?"]),
        (MINIMAL + '[search]\nscore = ["zen", "zen"]', ["each once"]),
        (MINIMAL + "[search]\nevaluations = 2", ["search.evaluations = 2", "greater than or equal to 8"]),
        (MINIMAL + '[train]\nepochs = "3"', ["train.epochs = '3'", "integer"]),
        (MINIMAL + "[train]\nepochs = true", ["train.epochs = True", "integer"]),
        (MINIMAL + '[train]\naugment = "flip"', ["train.augment = 'flip'", "'crop_flip'"]),
        (MINIMAL + '[target]\nprecision = "fp8"', ["precision", "'fp8'", "fp32, fp16"]),
        (MINIMAL + '[target]\nprecision = ["fp32", "fp8"]', ["'fp8'", "fp32, fp16"]),
        (MINIMAL + '[target]\nprecision = ["fp32", "bf16"]', ["onnxruntime has no precision 'bf16'"]),
        (MINIMAL + '[target]\nprecision = ["int8", "int8"]', ["target.precision", "none of them twice"]),
        (MINIMAL + "[target]\nprecision = []", ["target.precision", "one at least"]),
        (MINIMAL + '[profile]\ntable = ["a", "b"]', ["2 tables for 1 precisions"]),
        (MINIMAL + '[target]\nprecision = ["fp32", "int8"]\n[profile]\ntable = "a"', ["1 tables for 2 precisions"]),
        (MINIMAL + "[quantise]\nmax_drop = -1", ["quantise.max_drop = -1"]),
        (MINIMAL + "[target]\nbatch = 0", ["target.batch = 0"]),
        (MINIMAL + "[profile]\ncool_down_seconds = 9999", ["profile.cool_down_seconds = 9999"]),
        (MINIMAL + "[profile]\ncool_down_seconds = true", ["profile.cool_down_seconds = True"]),
        (MINIMAL + "target = 3", ["target = 3"]),
        (MINIMAL + "[data]\nvalid_fraction = 1", ["data.valid_fraction"]),
    ],
)
def test_a_wrong_recipe_is_explained(text: str, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml")
    for part in parts:
        assert part in message


def test_every_mistake_is_listed() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe("seed = -1\n[train]\nepochs = 0\n")
    assert len(str(caught.value).splitlines()) == 3


def test_a_new_recipe_is_valid_and_named_after_its_file() -> None:
    recipe = parse_recipe(new_recipe(Path("some folder/my best net.toml")))
    assert recipe.name == "my-best-net"
    assert recipe.space.arguments()["resolutions"] == [16, 24, 32]


def test_the_commented_choices_of_a_new_recipe_are_valid_too() -> None:
    text = new_recipe(Path("x.toml"))
    limited = text.replace("# latency =", "latency =")  # what a confidence is one of
    for line in text.splitlines():
        if line.startswith("# confidence"):
            parse_recipe(limited.replace(line, line.removeprefix("# ")))
        elif line.startswith("# ") and " = " in line and not line.startswith("# source"):
            parse_recipe(text.replace(line, line.removeprefix("# ")))


def test_numbers_may_be_whole() -> None:
    assert parse_recipe(MINIMAL + "[train]\nlearning_rate = 1\nmax_seconds = 60").train.max_seconds == 60.0


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at .*hwnas new"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(binary)


def test_changed_keys_are_dotted_and_see_space_arguments() -> None:
    old = parse_recipe(MINIMAL + '[space]\nname = "mobilenetv3"\ndepths = [2]')
    new = parse_recipe(MINIMAL + 'seed = 1\n[space]\nname = "mobilenetv3"\ndepths = [3]\n[search]\nlatency = "1 ms"')
    assert changed_keys(old, new) == ["search.latency", "seed", "space.depths"]
    assert changed_keys(old, old) == []


def test_a_confidence_needs_a_limit():
    assert parse_recipe('name = "a"\n[search]\nlatency = "1 ms"\nconfidence = 0.95').search.confidence == 0.95
    with pytest.raises(RecipeError, match=r"give search\.latency too"):
        parse_recipe('name = "a"\n[search]\nconfidence = 0.95')
    with pytest.raises(RecipeError, match=r"search\.confidence = 95"):
        parse_recipe('name = "a"\n[search]\nlatency = "1 ms"\nconfidence = 95.0')


def test_a_recipe_of_several_precisions_is_one_of_each() -> None:
    recipe = parse_recipe(
        MINIMAL + '[target]\nprecision = ["int8", "fp32"]\n[profile]\ntable = ["a8", "a32"]\n[quantise]\nmax_drop = 2'
    )
    assert recipe.target.precisions == ("fp32", "int8"), "the plainest first, however they are written"
    assert recipe.target.target().precision == "fp32"
    assert recipe.target.target("int8").slug() == "onnxruntime-int8-b1-t1"
    assert recipe.quantise.max_drop == 2.0
    for precision, table in (("fp32", "a32"), ("int8", "a8")):
        alone = recipe.at(precision)
        assert (alone.target.precisions, alone.tables, alone.search) == ((precision,), (table,), recipe.search)
    without = parse_recipe(MINIMAL + '[target]\nprecision = ["fp32", "int8"]')
    assert without.at("int8").profile.table is None
