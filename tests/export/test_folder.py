"""A folder that is replaced holds the old files or the new ones, whatever happens while it is replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hwnas.export import folder
from hwnas.export.folder import remove_unfinished, replaced_folder

OLD, NEW = (dict.fromkeys(("card.json", "graph.bin", "graph.xml"), text) for text in ("old", "new"))
KEPT = {"older.json": "kept", "onnx/net/net.onnx": "kept"}


@pytest.fixture(scope="module")
def states() -> list[dict]:
    """What faults at every step left."""
    if sys.platform == "win32":
        pytest.skip("processes are forked and killed, as Windows cannot")
    script = Path(__file__).with_name("faulty_folder.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def chosen(states: list[dict], exchanges: bool, fault: str) -> tuple[list[dict], dict, dict]:
    """The states, and what the older and the newer content are in them."""
    found = [each for each in states if (each["exchanges"], each["fault"]) == (exchanges, fault)]
    more = KEPT if exchanges else {}
    assert len(found) > 10
    assert found[-1]["found"] == NEW | more  # the last one came to its end
    return found, OLD | more, NEW | more


@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_a_fault_at_any_step_leaves_the_old_files_or_the_new(states: list[dict], fault: str) -> None:
    found, old, new = chosen(states, True, fault)
    for state in found:
        assert state["found"] in (old, new)
        assert state["after"] == state["found"]
        if fault == "full disk" and state["found"] == old:
            assert state["left"] == ["net"]


def test_without_an_exchange_a_full_disk_does_no_harm_either(states: list[dict]) -> None:
    found, old, new = chosen(states, False, "full disk")
    for state in found:
        assert state["found"] in (old, new)
        assert state["after"] == state["found"]


def test_without_an_exchange_a_kill_between_two_renames_is_mended_by_the_next_export(states: list[dict]) -> None:
    found, old, new = chosen(states, False, "kill")
    assert {json.dumps(state["found"]) for state in found} == {json.dumps(each) for each in (old, new, None)}
    for state in found:
        assert state["after"] == (state["found"] or old)


def test_what_is_taken_over_is_not_what_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where files cannot be linked."""
    final = tmp_path / "export"
    for number, links in enumerate((True, False)):
        if not links:
            monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
        with replaced_folder(final, keep=True) as new:
            (new / "net.onnx").write_text(f"new {number}")
            (new / f"other{number}").write_text("1")
    assert sorted(path.name for path in final.iterdir()) == ["net.onnx", "other0", "other1"]
    assert (final / "net.onnx").read_text() == "new 1"
    with replaced_folder(final) as new:
        (new / "alone").touch()
    assert [path.name for path in final.iterdir()] == ["alone"]


def test_an_error_keeps_the_old_files_and_the_first_folder_needs_no_older_one(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "net"
    with replaced_folder(final) as new:
        (new / "a").write_text("1")
    with pytest.raises(FileNotFoundError), replaced_folder(final) as new:
        (new / "missing" / "a").write_text("2")
    assert (final / "a").read_text() == "1"
    with replaced_folder(final) as new:
        (new / "b").write_text("3")
    assert [path.name for path in final.iterdir()] == ["b"]
    assert [path.name for path in final.parent.iterdir()] == ["net"]


def test_what_kills_left_is_removed_and_an_older_folder_moved_aside_is_not(tmp_path: Path) -> None:
    for name in (".net.x1", ".net.old", ".network.x1", "net"):
        (tmp_path / name / "new").mkdir(parents=True)
    remove_unfinished(tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".net.old", ".network.x1", "net"]


def test_a_second_rename_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "net"
    with replaced_folder(final) as new:
        (new / "a").write_text("1")
    monkeypatch.setattr(folder, "_exchange", lambda first, second: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError("a file in it is open")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError), replaced_folder(final) as new:
        (new / "b").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (final / "a").read_text() == "1"
