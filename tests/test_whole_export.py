"""The files of `hwnas export RUN` are replaced together: what fails or is stopped on the way leaves the older ones."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import recipe_text, table_path, toy_run

from hwnas.errors import PredictorError
from hwnas.export.exporter import ExportSpec
from hwnas.export.graph import onnx_of
from hwnas.exporting import export_stage
from hwnas.results import export_lock
from hwnas.run import Run, train_study
from hwnas.search.study import record_trial
from hwnas.shipping import Wanted, ship_networks
from hwnas.space import Arch
from hwnas.trained import build, save_weights, weights_path
from hwprof.errors import BusyError
from hwprof.table import read_table, write_table

ARCH: Arch = (0, 0, 0, 3, 0, 0)


def run_on(runtime: str, folder: Path) -> Run:
    text = recipe_text(folder, "TPESampler").replace("nasbench201.json", "own.json")
    run = toy_run(text.replace("[profile]\n", f'[target]\nruntime = "{runtime}"\n[profile]\n'))
    table = read_table(Path(table_path(folder, "nasbench201")))
    write_table(replace(table, target=run.target), run.table_path)
    run.open_folder()
    record_trial(train_study(run), run.space, ARCH, (50.0, 1.0))
    train(run, 0)
    return run


def train(run: Run, seed: int) -> None:
    torch.manual_seed(seed)
    module = build(run, ARCH)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_weights(module, weights_path(run, ARCH))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("runtime", ["onnxruntime", "ncnn"])
def test_the_files_of_an_export_are_replaced_together(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(runtime)
    # torch's own exporter takes seconds
    monkeypatch.setattr("hwnas.exporting.export_onnx", lambda module, shape: onnx_of(module, ExportSpec(shape)))
    run = run_on(runtime, tmp_path)
    folder, name = run.folder / "export", run.network_name(ARCH)
    export_stage(run)
    (shipped := folder / "onnx" / name).mkdir(parents=True)
    (shipped / "net.onnx").write_text("of another export")
    before = content(folder)
    (run.folder / ".export.killed" / "new").mkdir(parents=True)
    kinds = {"onnxruntime": (".onnx",), "ncnn": (".onnx", ".ncnn.param")}[runtime]
    files = {f"{name}{kind}{more}" for kind in kinds for more in ("", ".json", ".html")}
    files |= {f"{name}.ncnn.bin"} if runtime == "ncnn" else set()
    assert set(before) == {*files, f"onnx/{name}/net.onnx"}
    if runtime == "ncnn":
        card = json.loads(before[f"{name}.ncnn.param.json"])
        assert [each["file"] for each in card["beside"]] == [f"{name}.ncnn.bin"]

    train(run, 1)
    for step in ("write_onnx", "network_row", "write_card_page"):
        with monkeypatch.context() as patch:

            def failing(*_: Any, **__: Any) -> None:
                raise PredictorError("it went wrong")

            patch.setattr(f"hwnas.exporting.{step}", failing)
            with pytest.raises(PredictorError, match="it went wrong"):
                export_stage(run)
        assert content(folder) == before
        assert sorted(path.name for path in run.folder.iterdir() if "export" in path.name) == ["export"]
    export_stage(run)
    after = content(folder)
    assert set(after) == set(before)
    assert [path for path in after if after[path] == before[path]] == [f"onnx/{name}/net.onnx"]


def test_a_run_is_exported_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = run_on("onnxruntime", tmp_path)
    held, done = threading.Event(), threading.Event()

    def other() -> None:
        with export_lock(run):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=other)
    holder.start()
    try:
        assert held.wait(60)
        for export in (lambda: export_stage(run), lambda: ship_networks(run, Wanted(("ort",)))):
            with pytest.raises(BusyError, match=r"export\.lock; it exports the same run"):
                export()
        assert [Path(card["path"]).name for card in ship_networks(run, Wanted(("ort",), folder=tmp_path / "out"))]
    finally:
        done.set()
        holder.join()
    assert not (run.folder / "export.lock").exists()
