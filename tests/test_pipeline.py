"""The whole job at toy size through the command line: what is written, what a second call does, what a kill leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hwnas.cli import main
from hwnas.latency.predict import TablePredictor
from hwnas.recipe import load_recipe
from hwnas.report.summary import RunSummary
from hwnas.search.problem import Objective
from hwnas.search.study import open_study, recorded
from hwnas.spaces import make_space
from hwnas.testing.runtimes import why_not
from hwnas.zeroshot import COMBINED
from hwnas.zeroshot.combine import combine
from hwprof.table import read_table, write_table

# Small enough for seconds. The limits of refusal are those of every user, so the networks are not the very smallest.
RECIPE = """
name = "toy"
[data]
source = "digits"
[space]
name = "mobilenetv3"
resolutions = [16, 20]
depths = [1, 2]
kernels = [3, 5]
expands = [2, 3]
stem_width = 16
stem_stride = 1
stage_widths = [16, 24, 32]
stage_strides = [2, 2, 1]
se = [false, true, false]
activations = ["relu", "relu", "hardswish"]
head_widths = [64, 64]
[profile]
networks = 4
fit = 8
held_out = 9
searched = 9
[search]
evaluations = 12
trainings = 2
[train]
epochs = 2
"""

SCORED = (Objective("macs", "", "maximize"), Objective("latency", "ms", "minimize"))


def hwnas(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder; its exit code must be `code`. In this process: torch is imported already."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["hwnas", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    done = subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.toml").write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, "-m", "hwnas", "run", "toy.toml", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "out.json").write_text(done.stdout)
    return folder


def with_table(finished: Path) -> str:
    """The recipe, with the table that the finished run measured."""
    table = next((finished / "latency_tables").glob("*/*.json"))
    return RECIPE.replace("[profile]", f'[profile]\ntable = "{table.as_posix()}"')


def front_of(summary: RunSummary) -> list[tuple[str, float]]:
    """Architectures and validation accuracies as the search gave them: a summary lists them by measured latency."""
    rows = sorted(summary.networks, key=lambda row: row.predicted_ms)
    return [(row.arch, row.valid_accuracy) for row in rows]


def searched(folder: Path) -> list[tuple[str, float]]:
    """The front of `hwnas search` in this folder, as `front_of` gives that of a run."""
    front = json.loads(hwnas(folder, "search", "toy.toml", "--json").stdout)
    return [(row["arch"], row["valid_accuracy_percent"]) for row in front]


def test_a_run_leaves_checked_files_a_summary_and_a_report(finished: Path) -> None:
    run = finished / "runs" / "toy"
    summary = RunSummary.from_json((finished / "out.json").read_text())
    assert summary == RunSummary.from_json((run / "summary.json").read_text())
    assert 1 <= len(summary.networks) <= 2
    assert len(summary.candidates) == 12
    for network in summary.networks:
        file = run / network.file
        model = onnx.load(file)
        onnx.checker.check_model(model, full_check=True)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        card = json.loads(Path(f"{file}.json").read_text())
        assert metadata["hwnas.arch"] == card["arch"] == network.arch
        assert json.loads(metadata["hwnas.predicted_ms"]) == network.predicted_ms
        assert card["size_bytes"] == file.stat().st_size
        assert network.predicted_low_ms < network.predicted_ms < network.predicted_high_ms
        # Refused measurements are possible on a busy machine; then the reason is there (NetworkRow checks it).
        if network.measured_ms is not None:
            assert 0.3 < network.measured_ms / network.predicted_ms < 3
    assert (run / "report.html").stat().st_size > 1_000_000
    assert set(summary.seconds) >= {"profile", "score", "train", "export", "measure"}


def test_a_second_run_measures_scores_and_trains_nothing_again(finished: Path) -> None:
    run = finished / "runs" / "toy"
    before = (run / "journal.log").read_bytes()
    table = next((finished / "latency_tables").glob("*/*.json"))
    stamp = table.stat().st_mtime_ns
    first = RunSummary.from_json((run / "summary.json").read_text())
    again = RunSummary.from_json(hwnas(finished, "run", "toy.toml", "--json").stdout)
    assert (run / "journal.log").read_bytes().startswith(before)
    assert front_of(again) == front_of(first)
    assert {row.arch: row.accuracy for row in again.networks} == {row.arch: row.accuracy for row in first.networks}
    assert table.stat().st_mtime_ns == stamp
    assert json.loads(hwnas(finished, "profile", "toy.toml", "--json").stdout)["reused"] is True


def test_same_seed_and_table_same_front(finished: Path, tmp_path: Path) -> None:
    first = RunSummary.from_json((finished / "runs" / "toy" / "summary.json").read_text())
    (tmp_path / "toy.toml").write_text(with_table(finished))
    assert searched(tmp_path) == front_of(first)


def test_a_search_that_is_killed_goes_on_to_the_same_front(finished: Path, tmp_path: Path) -> None:
    first = RunSummary.from_json((finished / "runs" / "toy" / "summary.json").read_text())
    (tmp_path / "toy.toml").write_text(with_table(finished))
    journal = tmp_path / "runs" / "toy" / "journal.log"
    for lines in (8, 20, 30):
        process = subprocess.Popen(
            [sys.executable, "-m", "hwnas", "search", "toy.toml"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert searched(tmp_path) == front_of(first)


def test_a_zero_shot_search_trains_nothing_and_a_search_goes_on_from_it(finished: Path, tmp_path: Path) -> None:
    first = RunSummary.from_json((finished / "runs" / "toy" / "summary.json").read_text())
    (tmp_path / "toy.toml").write_text(with_table(finished))
    front = json.loads(hwnas(tmp_path, "search", "toy.toml", "--zero-shot", "--json").stdout)
    run = tmp_path / "runs" / "toy"
    assert not (run / "weights").exists()
    assert [one["predicted_ms"] for one in front] == sorted(one["predicted_ms"] for one in front)
    assert [one["value"] for one in front] == sorted(one["value"] for one in front), "slower only if better"
    assert front[-1]["place"] == 1
    assert set(front[0]["scores"]) == set(COMBINED)
    trials = (run / "journal.log").read_bytes().count(b'"shortest_path"')
    shown = hwnas(tmp_path, "search", "toy.toml", "--zero-shot").stdout
    assert "12 untrained networks" in shown
    assert (run / "journal.log").read_bytes().count(b'"shortest_path"') == trials > 11, "nothing is scored again"
    assert searched(tmp_path) == front_of(first)


def test_every_candidate_says_what_it_was_ranked_by(finished: Path) -> None:
    summary = RunSummary.from_json((finished / "runs" / "toy" / "summary.json").read_text())
    for one in summary.candidates:
        assert list(one.scores) == ["combined", *COMBINED]
        assert one.scores["combined"] <= 0
    scores = np.array([list(one.scores.values()) for one in summary.candidates])
    assert combine(COMBINED, scores[:, 1:]).tolist() == pytest.approx(scores[:, 0].tolist())
    assert "Why each network was ranked where it was" in (finished / "runs" / "toy" / "report.html").read_text()


def test_a_run_scored_by_others_is_not_ranked_by_these(finished: Path, tmp_path: Path) -> None:
    text = with_table(finished).replace("[search]", '[search]\nscore = ["naswot", "macs"]')
    (tmp_path / "toy.toml").write_text(text)
    front = json.loads(hwnas(tmp_path, "search", "toy.toml", "--zero-shot", "--json").stdout)
    assert set(front[0]["scores"]) == {"naswot", "macs"}
    journal = tmp_path / "runs" / "toy" / "journal.log"
    journal.write_text(journal.read_text().replace('"naswot"', '"nwot"'))
    message = " ".join(hwnas(tmp_path, "search", "toy.toml", "--zero-shot", code=1).stderr.split())
    assert "was scored by nwot, macs, the recipe asks for naswot, macs" in message


def test_an_infeasible_limit_says_what_is_attainable(finished: Path, tmp_path: Path) -> None:
    text = with_table(finished)
    (tmp_path / "toy.toml").write_text(text.replace("[search]", '[search]\nlatency = "1 us"'))
    message = hwnas(tmp_path, "search", "toy.toml", code=1).stderr
    assert "0.001 ms" in message
    assert "attainable" in message


def test_a_confidence_keeps_the_upper_bound_under_the_limit(finished: Path, tmp_path: Path) -> None:
    text = with_table(finished).replace("trainings = 2", "trainings = 1").replace("epochs = 2", "epochs = 1")
    table = read_table(next((finished / "latency_tables").glob("*/*.json")))
    arguments = dict(table.provenance["space"])
    space = make_space(arguments.pop("name"), arguments)
    archs = space.sample(500, np.random.default_rng(0))
    predictor = TablePredictor(space, table)
    limit = float(np.quantile(predictor.upper_ms(archs, 0.9), 0.3))
    within = predictor.predict_ms(archs) <= limit
    assert (predictor.upper_ms(archs, 0.9)[within] > limit).any()  # without a confidence some would break it
    search = f'[search]\nscore = "macs"\nlatency = "{limit * 1e3:.6f} us"\nconfidence = 0.9'
    (tmp_path / "toy.toml").write_text(text.replace("[search]", search))
    hwnas(tmp_path, "search", "toy.toml")
    trials = recorded(open_study(tmp_path / "runs" / "toy" / "journal.log", "score", SCORED))
    scored = np.array(list(trials))
    assert len(scored) > 5
    assert (predictor.upper_ms(scored, 0.9) <= limit * (1 + 1e-6)).all()
    assert [trial.values[1] for trial in trials.values()] == pytest.approx(predictor.upper_ms(scored, 0.9))


def test_a_table_is_checked_and_put_on_todays_scale(finished: Path, tmp_path: Path) -> None:
    """The machine has not changed since the table was made, but the table's numbers have been doubled."""
    path = next((finished / "latency_tables").glob("*/*.json"))
    write_table(read_table(path).scaled(2.0), tmp_path / "doubled.json")
    (tmp_path / "toy.toml").write_text(RECIPE.replace("[profile]", '[profile]\ntable = "doubled.json"'))
    for _ in range(5):  # a busy machine may refuse, or find that it has changed
        with contextlib.suppress(AssertionError):
            done = hwnas(tmp_path, "profile", "toy.toml", "--check", "--json")
            break
    else:
        pytest.skip("this machine is too busy now to measure a network of 0.1 ms twice alike")
    found = json.loads(done.stdout)
    assert found["holds"]
    assert 0.25 < found["factor"] < 1.0
    scaled = read_table(tmp_path / "doubled.json")
    assert scaled.provenance["checks"][0]["factor"] == pytest.approx(found["factor"], abs=1e-4)
    assert scaled.intercept_ms == pytest.approx(read_table(path).intercept_ms * 2 * found["factor"], rel=1e-4)
    assert "choose one" in hwnas(tmp_path, "profile", "toy.toml", "--check", "--fresh", code=2).stderr


def test_another_recipe_is_refused_in_the_same_folder_and_fresh_moves_the_old_run_aside(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "toy"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(RECIPE)
    text = with_table(finished).replace("trainings = 2", "trainings = 1")
    (tmp_path / "toy.toml").write_text(text)
    message = " ".join(hwnas(tmp_path, "search", "toy.toml", code=1).stderr.split())
    assert "profile.table, search.trainings changed" in message
    assert "--fresh" in message
    hwnas(tmp_path, "search", "toy.toml", "--fresh")
    assert (tmp_path / "runs" / "toy.1" / "recipe.toml").read_text() == RECIPE


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler", "evolution"])
def test_samplers_work_by_name_without_scores(finished: Path, tmp_path: Path, sampler: str) -> None:
    text = with_table(finished).replace("epochs = 2", "epochs = 1")
    (tmp_path / "toy.toml").write_text(text.replace("[search]", f'[search]\nsampler = "{sampler}"\nparams = "60 k"'))
    summary = RunSummary.from_json(hwnas(tmp_path, "run", "toy.toml", "--json").stdout)
    assert [(one.scores, one.valid_accuracy is None) for one in summary.candidates] == [({}, False)] * 2
    assert summary.networks
    assert all(row.params <= 60_000 for row in summary.networks)


def test_a_sampler_of_one_objective_is_refused(finished: Path, tmp_path: Path) -> None:
    text = with_table(finished).replace("[search]", '[search]\nsampler = "CmaEsSampler"')
    (tmp_path / "toy.toml").write_text(text)
    message = " ".join(hwnas(tmp_path, "search", "toy.toml", code=1).stderr.split())
    assert "search.sampler = 'CmaEsSampler' cannot be used here" in message


def test_optunas_samplers_choose_what_is_scored(finished: Path, tmp_path: Path) -> None:
    text = with_table(finished).replace("[search]", '[search]\nscore_sampler = "TPESampler"\nscore = "macs"')
    (tmp_path / "toy.toml").write_text(text)
    assert json.loads(hwnas(tmp_path, "search", "toy.toml", "--zero-shot", "--json").stdout)


def test_a_table_of_another_machine_searches_but_does_not_measure(finished: Path, tmp_path: Path) -> None:
    table = read_table(next((finished / "latency_tables").glob("*/*.json")))
    other = tmp_path / "other.json"
    write_table(replace(table, fingerprint={**table.fingerprint, "cpu": "another"}), other)
    text = RECIPE.replace("[profile]", '[profile]\ntable = "other.json"').replace("trainings = 2", "trainings = 1")
    (tmp_path / "toy.toml").write_text(text.replace("epochs = 2", "epochs = 1"))
    summary = RunSummary.from_json(hwnas(tmp_path, "run", "toy.toml", "--json").stdout)
    assert summary.networks[0].measured_ms is None
    assert "'another'" in (summary.networks[0].refused or "")
    assert summary.warnings


def test_a_space_that_does_not_fit_the_data_is_explained(finished: Path, tmp_path: Path) -> None:
    text = with_table(finished)
    (tmp_path / "toy.toml").write_text(text.replace("head_widths", "in_channels = 3\nhead_widths"))
    message = hwnas(tmp_path, "search", "toy.toml", code=1).stderr
    assert "3 channels" in message
    assert "space.in_channels" in message


def test_missing_stages_say_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(RECIPE)
    assert "hwnas profile" in hwnas(tmp_path, "search", "toy.toml", code=1).stderr
    assert "hwnas search" in hwnas(tmp_path, "export", "toy.toml", code=1).stderr
    assert "hwnas export" in hwnas(tmp_path, "report", "runs/toy", code=1).stderr


def test_report_is_written_again_from_the_summary(finished: Path) -> None:
    page = finished / "runs" / "toy" / "report.html"
    page.unlink()
    hwnas(finished, "report", "runs/toy")
    assert page.stat().st_size > 1_000_000


RECIPES = sorted((Path(__file__).parents[1] / "pipelines").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_runs_at_toy_size(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    if (reason := why_not(replace(recipe.target.target(), device="local"))) is not None:
        pytest.skip(reason)
    # The smallest budget of everything; digits stand in for data that would have to be fetched.
    shrink = {
        "source": '"digits"',
        "evaluations": "10",
        "trainings": "1",
        "epochs": "1",
        "minutes": "0.03",
        "child_epochs": "1",
        "networks": "3",
        "fit": "8",
        "held_out": "9",
        "searched": "9",
        "latency": '"1000 ms"',
        "tables": '"tables"',
        "device": '"local"',
        "threads": "1",
    }
    lines = [
        f"{line.split('=')[0]}= {shrink[key]}" if (key := line.split("=")[0].strip()) in shrink else line
        for line in path.read_text().splitlines()
    ]
    (tmp_path / "small.toml").write_text("\n".join(lines))
    if "[data]" not in lines:  # a recipe for a table alone
        assert json.loads(hwnas(tmp_path, "profile", "small.toml", "--json").stdout)["rows"] > 0
        return
    summary = RunSummary.from_json(hwnas(tmp_path, "run", "small.toml", "--json").stdout)
    assert summary.name == recipe.name
    assert len(summary.networks) == 1


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_ctrl_c_ends_with_one_line_and_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-m", "hwnas", "profile", "toy.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(tmp_path.glob("latency_tables/*/*.journal")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    hwnas(tmp_path, "profile", "toy.toml")
    assert not list(tmp_path.glob("latency_tables/*/*.journal"))


def test_a_runtime_upgraded_under_a_table_is_told_and_fresh_keeps_the_old_table(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(RECIPE)
    path = tmp_path / json.loads(hwnas(tmp_path, "profile", "toy.toml", "--json").stdout)["path"]
    table = read_table(path)
    write_table(replace(table, fingerprint={**table.fingerprint, "onnxruntime": "1.0"}), path)
    message = " ".join(hwnas(tmp_path, "profile", "toy.toml", code=1).stderr.split())
    assert "onnxruntime is '1.0' in the table" in message
    assert "--fresh" in message
    hwnas(tmp_path, "profile", "toy.toml", "--fresh")
    assert read_table(path).fingerprint == table.fingerprint
    assert path.with_name(f"{path.name}.1").exists()
