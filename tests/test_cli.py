"""The command line without a run: help, lists, new recipes, exit codes; and the README's examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hwnas
from hwnas.cli import app
from hwnas.errors import HwnasError
from hwnas.recipe import load_recipe, parse_recipe
from hwnas.sections import SearchSection

ROOT = Path(__file__).parents[1]
COMMANDS = (
    *("profile", "validate", "search", "export", "run", "report"),
    *("new", "devices", "spaces", "import", "merge", "transfer", "score"),
)
runner = CliRunner()


def test_help_lists_every_command() -> None:
    text = runner.invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: hwnas {command}" in result.output


def test_wrong_usage_is_exit_code_2() -> None:
    assert runner.invoke(app, ["nonsense"]).exit_code == 2
    assert runner.invoke(app, ["run"]).exit_code == 2
    assert runner.invoke(app, ["run", "a.toml", "--nonsense"]).exit_code == 2


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output.strip() == hwnas.__version__


def test_new_writes_a_valid_recipe_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mine.toml"
    assert runner.invoke(app, ["new", str(path)]).exit_code == 0
    assert load_recipe(path).name == "mine"
    again = runner.invoke(app, ["new", str(path)])
    assert isinstance(again.exception, HwnasError)
    assert "is there already" in str(again.exception)


def test_devices_are_listed_with_their_versions() -> None:
    found = json.loads(runner.invoke(app, ["devices", "--json"]).output)
    assert found[0]["device"] == "local"
    assert found[0]["state"].startswith("ready: onnxruntime ")


def test_spaces_are_listed_with_their_arguments() -> None:
    found = json.loads(runner.invoke(app, ["spaces", "--json"]).output)
    assert found["nasbench201"]["size"] == 15625
    assert found["mobilenetv3"]["arguments"]["depths"] == [2, 3, 4]
    wrong = runner.invoke(app, ["spaces", "mobilenet"])
    assert "unknown space 'mobilenet'; known: mobilenetv3, nasbench201" in str(wrong.exception)


def test_the_readmes_recipe_is_valid_and_its_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    recipe, search, training, supernet, proxyless, target = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert parse_recipe(recipe).search.latency == 1.0
    assert parse_recipe('name = "ranked"\n' + search).search == SearchSection(), "what it shows are the defaults"
    assert parse_recipe('name = "trained"\n' + training).search.params == 400e3
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, {})
    assert parse_recipe('name = "together"\n' + supernet).supernet.minutes == 20
    assert parse_recipe('name = "aimed"\n' + proxyless).supernet.targets == [0.2, 0.4]
    assert parse_recipe('name = "board"\n' + target).target.precisions == ("fp32", "int8")
    for command in re.findall(r"^ {4}hwnas (\w+)", text, flags=re.MULTILINE):
        assert command in COMMANDS
    for target in re.findall(r"^ {4}make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for link in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / link).exists()
