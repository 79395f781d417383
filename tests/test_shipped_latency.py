"""Files of `hwnas export --format`, measured on a made-up device and compared with their prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import recipe_text, table_path, toy_run

from hwnas.card import Card
from hwnas.export.exporter import make_exporter
from hwnas.export.sensitive import Choice
from hwnas.export.verify import Verification
from hwnas.export_command import show
from hwnas.latency.measure import anchor_scale
from hwnas.latency.predict import TablePredictor
from hwnas.results import on_target
from hwnas.run import Run, train_study
from hwnas.search.study import record_trial
from hwnas.shipping import Wanted, _where_measured, ship_networks
from hwnas.space import Arch, format_arch, rows_of
from hwnas.trained import build, save_weights, weights_path
from hwprof.answers import Group, Result
from hwprof.errors import DeviceError
from hwprof.table import Model, read_table, write_table
from hwprof.target import Target

FINGERPRINT = {"cpu": "made up", "cores": "1"}
ARCHS: tuple[Arch, ...] = ((3, 3, 3, 3, 3, 3), (2, 2, 2, 2, 2, 2))


@dataclass
class Device:
    """Stands for hwprof's client: files take `ms`; what it was asked is kept. `scale_ms`: precision -> its anchors'."""

    ms: float = 1.0
    refused: str | None = None
    away: bool = False
    fingerprint: dict[str, str] = field(default_factory=FINGERPRINT.copy)
    asked: list[tuple[str, list[str], int]] = field(default_factory=list)
    scale_ms: dict[str, float] = field(default_factory=dict)

    def __call__(self, device: Any, target: Target) -> Device:
        self.target = target
        return self

    def __enter__(self) -> Device:
        if self.away:
            raise DeviceError("no such phone")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def patiently(self, job: Callable[[], Any]) -> Any:
        return job()

    def measure(self, models: dict[str, Path], anchors: dict[str, Path], plan: Any, *, seed: int) -> Group:
        assert all(path.exists() for path in (*models.values(), *anchors.values()))
        files = [path.name for path in models.values()]
        self.asked.append((f"{self.target.runtime} {self.target.precision} b{self.target.batch}", files, len(anchors)))
        ratio = self.ms / (self.scale_ms[self.target.precision] if anchors else 1.0)
        results = tuple(Result(name, ratio, 0.01, 0.0, (1.0,), 9.0, 0.0, self.refused, None) for name in models)
        return Group(results, (1.0,), dict.fromkeys(anchors, (1.0, 1.0, 1.0)), 0.0, 0.1, 0.0, 0, {})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    for module in ("hwnas.latency.measure", "hwnas.shipping", "hwnas.run"):
        monkeypatch.setattr(f"{module}.AgentClient", device)
    monkeypatch.setattr("hwnas.shipping.verify_native", lambda *_: Verification(50.0, 1e-6, 9, 50.0))
    # a made-up table has no networks to calibrate intervals with
    monkeypatch.setattr("hwnas.results.predicted_interval", lambda part, matrix: (0.9 * ms(part), 1.1 * ms(part)))
    return device


def ms(run: Run, arch: Arch = ARCHS[0]) -> float:
    return float(run.predictor.predict_ms(np.array([arch]))[0])


def put_table(device: Device, run: Run, factor: float = 1.0) -> None:
    """The toy's table `factor` times, of the made-up machine and the run's target; its anchors fit its rows."""
    table = read_table(Path(table_path(run.folder.parents[1], "nasbench201"))).scaled(factor)
    archs = dict.fromkeys(rows_of(run.space.sample(20, np.random.default_rng(0))))
    times = TablePredictor(run.space, table).predict_ms(np.array(list(archs)[:3]))
    anchors = tuple(Model(format_arch(arch), "anchor", float(ms), 0.0) for arch, ms in zip(archs, times, strict=False))
    device.scale_ms[run.target.precision] = anchor_scale(anchors)
    write_table(replace(table, models=anchors, fingerprint=FINGERPRINT, target=run.target), run.table_path)


def run_in(device: Device, folder: Path, search: str = "", target: str = "") -> Run:
    """A run with two trained networks, whose table is of the made-up machine."""
    text = recipe_text(folder, "TPESampler", search=search).replace("nasbench201.json", "own.json")
    run = toy_run(text.replace("[profile]\n", f'{target}\n[profile]\ntables = "{(folder / "tables").as_posix()}"\n'))
    run.open_folder()
    for number, arch in enumerate(ARCHS):
        record_trial(train_study(run), run.space, arch, (50.0 - number, 1.0 - number / 10))
        save_weights(build(run, arch), weights_path(run, arch))
    put_table(device, run)
    return run


def ship(run: Run, *formats: str, **options: Any) -> dict[str, Any]:
    """The card of the first network's only file, which is also on disk."""
    (card,) = ship_networks(run, Wanted(formats, networks=(run.network_name(ARCHS[0]),), **options))
    written = json.loads(Path(card["path"] + ".json").read_text())
    Card.from_json(json.dumps(written))
    own = {key: value for key, value in card.items() if key not in ("path", "size_bytes")}
    assert json.loads(json.dumps(own)).items() <= written.items()
    return card


def test_a_file_of_the_target_is_compared_with_its_prediction(device: Device, tmp_path: Path) -> None:
    run = run_in(device, tmp_path)
    device.ms = ms(run)
    card = ship(run, "onnx")
    assert device.asked == [("onnxruntime fp32 b1", [Path(card["path"]).name], 3)]
    assert card["measured_ms"] == pytest.approx(card["predicted_ms"]) == pytest.approx(ms(run))
    assert card["predicted_interval_ms"] == pytest.approx([0.9 * ms(run), 1.1 * ms(run)])
    assert card["measured_interval_ms"] == pytest.approx([0.9804 * ms(run), 1.0196 * ms(run)])
    assert (card["deployable"], card["not_deployable"], card["outside_interval"]) == (True, None, None)
    assert (card["not_measured"], card["not_compared"], card["within_limit"]) == (None, None, None)
    assert card["target"].items() >= FINGERPRINT.items()
    assert "measured_on" not in card


@pytest.mark.parametrize(
    ("factor", "limit", "within", "outside"),
    [(1.05, 1.2, True, None), (1.15, 1.2, True, "slower"), (0.8, 1.2, True, "faster"), (1.25, 1.2, False, "slower")],
)
def test_limits_and_intervals_are_kept_or_said_to_be_broken(
    device: Device,
    tmp_path: Path,
    factor: float,
    limit: float,
    within: bool,
    outside: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_in(device, tmp_path)
    limit_ms = limit * ms(run)
    run = run_in(device, tmp_path / "limited", search=f'latency = "{limit_ms:.9f} ms"')
    device.ms = factor * ms(run)
    card = ship(run, "onnx")
    assert (card["latency_limit_ms"], card["within_limit"]) == (pytest.approx(limit_ms), within)
    assert (card["deployable"], card["outside_interval"]) == (within, outside)
    show([card])
    shown = capsys.readouterr().out
    assert ("NOT DEPLOYABLE" in shown) == (not within)
    assert (f"is {outside} than its prediction interval" in shown) == (outside is not None)


def test_without_a_table_files_are_measured_alone(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(device, tmp_path, search='latency = "1 ms"')
    device.ms = 0.5
    target = Target(runtime="litert")
    pytest.importorskip("ai_edge_litert")
    card = ship(run, "tflite", target=target)
    assert device.asked == [("litert fp32 b1", [Path(card["path"]).name], 0)]
    assert (card["measured_ms"], card["within_limit"], card["deployable"]) == (0.5, True, True)
    assert (card["predicted_ms"], card["predicted_interval_ms"]) == (None, [None, None])
    assert "there is no latency table at" in card["not_compared"]
    assert card["measured_on"] == {**target.__dict__, **FINGERPRINT}
    assert card["target"]["runtime"] == "onnxruntime", "the recipe's, which trains it again"
    show([card])
    assert "warning: compared with no prediction: measured as the device runs now" in capsys.readouterr().out


def test_another_precision_has_the_table_that_a_recipe_for_it_would_have(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(device, tmp_path)
    part = on_target(run, Target(precision="fp16"))
    put_table(device, part, 3.0)
    device.ms = 3 * ms(run)
    cards = ship_networks(run, Wanted(("onnx",), ("fp32", "fp16")))
    assert [(what, len(files), anchors) for what, files, anchors in device.asked] == [
        ("onnxruntime fp32 b1", 2, 3), ("onnxruntime fp16 b1", 2, 3),
    ]  # fmt: skip
    show(cards)
    said = capsys.readouterr().out
    assert said.count(": fp16 gains nothing here") == 2, "both take as long in fp32"
    assert f"{run.network_name(ARCHS[0])}.fp16.onnx takes" in said
    show(
        [{**card, "measured_ms": 0.9 * card["measured_ms"]} if card["precision"] == "fp16" else card for card in cards]
    )
    assert "gains nothing" not in capsys.readouterr().out
    plain, half = (next(one for one in cards if one["precision"] == each) for each in ("fp32", "fp16"))
    assert half["predicted_ms"] == pytest.approx(3 * plain["predicted_ms"])
    assert (plain["outside_interval"], half["outside_interval"]) == ("slower", None)
    assert half["measured_on"]["precision"] == "fp16"
    assert half["table"]["name"] == part.table_path.name != plain["table"]["name"]
    assert half["layers"][0]["ms"] == pytest.approx(3 * plain["layers"][0]["ms"])


def test_the_prediction_knows_of_blocks_in_float(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(device, tmp_path)
    part = on_target(run, Target(precision="int8"))
    put_table(device, part, 0.5)
    position, block = run.space.placed_blocks(ARCHS[0])[0]
    row_ms = run.table.rows[block.key].ms
    for kept in (f"network.{position.name}", "normalise"):
        choice = Choice((kept,), 50.0, 50.0, True)
        monkeypatch.setattr("hwnas.shipping.choose_in_float", lambda *_, choice=choice, **__: choice)
        card = ship(run, "onnx", precisions=("int8",), inside=True)
        assert card["predicted_ms"] == pytest.approx(ms(part) + (kept != "normalise") * row_ms / 2)
    run = run_in(device, tmp_path / "low", target='[target]\nprecision = "int8"')
    dropping = Choice((position.name,), 40.0, 50.0, False)
    monkeypatch.setattr("hwnas.shipping.choose_in_float", lambda *_, **__: dropping)
    card = ship(run, "onnx", precisions=("int8",))
    assert (card["measured_ms"], card["predicted_ms"]) == (1.0, None)
    assert "blocks in float are not in this table" in card["not_compared"]
    assert (card["deployable"], card["not_deployable"]) == (
        False, "loses more accuracy than quantise.max_drop allows",
    )  # fmt: skip


def test_a_table_of_another_machine_is_not_compared_with(device: Device, tmp_path: Path) -> None:
    run = run_in(device, tmp_path)
    device.fingerprint["cpu"] = "another"
    card = ship(run, "onnx")
    assert [anchors for *_, anchors in device.asked] == [0]
    assert "the latency table is of another target: cpu is 'made up'" in card["not_compared"]
    assert card["predicted_ms"] is None


def test_what_cannot_be_measured_says_why(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_in(device, tmp_path)
    device.refused = "the machine is busy"
    cards = [ship(run, "onnx")]
    device.away = True
    cards += [ship(run, "onnx"), ship(run, "ort")]
    show(cards)
    shown = capsys.readouterr().out
    reasons = ("the machine is busy", "no such phone", "onnxruntime on local is not known to run ort files")
    for card, reason in zip(cards, reasons, strict=True):
        assert reason in card["not_measured"]
        assert (card["deployable"], card.get("measured_ms")) == (None, None)
        assert card["not_deployable"].startswith("not measured: ")
        assert card["predicted_ms"] == pytest.approx(ms(run)), "of the recipe's target, as before"
        assert f"warning: written, but not measured: {reason}" in shown


def test_the_file_that_is_measured_is_in_the_batch_and_the_precision_of_the_target(
    device: Device, tmp_path: Path
) -> None:
    run = run_in(device, tmp_path, target='[target]\nbatch = 4\nthreads = 2\noptimisation = "basic"')
    onnx, ncnn = make_exporter("onnx"), make_exporter("ncnn")
    assert _where_measured(run, onnx, "int8", Wanted(("onnx",))) == Target(
        "local", "onnxruntime", "int8", 4, 2, "basic"
    )
    found = _where_measured(run, onnx, "fp16", Wanted(("onnx",), target=Target("adb", "onnxruntime-cuda")))
    assert found == Target("adb", "onnxruntime-cuda", "fp16", 4, 2, "all"), "levels are those of a runtime"
    assert "take batches of at most 1, the recipe's target has batches of 4" in str(
        _where_measured(run, ncnn, "fp32", Wanted(("ncnn",), target=Target(runtime="ncnn")))
    )
    refused = _where_measured(run, onnx, "int8", Wanted(("onnx",), target=Target(runtime="onnxruntime-cuda")))
    assert "onnxruntime-cuda has no precision 'int8'" in str(refused)
