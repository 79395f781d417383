from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprof.errors import TargetError
from hwprof.target import Plan, Target, plan_from_json, target_from_json, to_json

targets = st.builds(
    Target,
    device=st.text(),
    runtime=st.text(),
    batch=st.integers(1, 10**6),
    threads=st.integers(1, 10**3),
    optimisation=st.text(),
)
limits = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
plans = st.builds(
    Plan,
    sweeps=st.integers(3, 9),
    max_sweeps=st.integers(9, 99),
    warmup_runs=st.integers(0, 9),
    min_runs=st.integers(1, 9),
    max_runs=st.integers(9, 99),
    visit_ms=limits,
    max_standard_error=limits,
    max_spread=limits,
    max_drift=limits,
)


@given(targets)
def test_a_target_survives_json(target: Target) -> None:
    assert target_from_json(json.loads(json.dumps(to_json(target)))) == target


@given(plans)
def test_a_plan_survives_json(plan: Plan) -> None:
    assert plan_from_json(json.loads(json.dumps(to_json(plan)))) == plan


def test_a_whole_number_serves_as_a_limit() -> None:
    assert plan_from_json({"visit_ms": 12}).visit_ms == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thread": 2}, "target has no field 'thread'; its fields: device, runtime"),
        ({"batch": "1"}, "target.batch must be int, got '1'"),
        ({"batch": 1.0}, "target.batch must be int, got 1.0"),
        ({"batch": True}, "target.batch must be int, got True"),
        ({"batch": None}, "target.batch must be int, got None"),
        ({"batch": 0}, "target.batch must be at least 1, got 0"),
        ({"threads": -1}, "target.threads must be at least 1, got -1"),
        ({"device": 3}, "target.device must be str, got 3"),
        ({"runtime": ["onnxruntime"]}, "target.runtime must be str"),
        ({"precision": "int7"}, "target.precision must be one of fp32, fp16, bf16, int8, got 'int7'"),
    ],
)
def test_a_wrong_target_is_named(values: dict, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target_from_json(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sweep": 7}, "plan has no field 'sweep'"),
        ({"sweeps": 7.0}, "plan.sweeps must be int, got 7.0"),
        ({"sweeps": True}, "plan.sweeps must be int, got True"),
        ({"visit_ms": True}, "plan.visit_ms must be float, got True"),
        ({"visit_ms": "12"}, "plan.visit_ms must be float, got '12'"),
        ({"sweeps": 2}, "3 <= sweeps <= max_sweeps, got 2 and 21"),
        ({"sweeps": 22}, "3 <= sweeps <= max_sweeps, got 22 and 21"),
        ({"min_runs": 0}, "1 <= min_runs <= max_runs, got 0"),
        ({"max_runs": 1}, "1 <= min_runs <= max_runs, got 2 and 1"),
        ({"warmup_runs": -1}, "warmup_runs of at least 0, got -1"),
        ({"visit_ms": 0}, "visit_ms above 0, got 0"),
        ({"max_spread": math.nan}, "max_spread above 0, got nan"),
        ({"max_drift": -0.1}, "max_drift above 0"),
        ({"max_standard_error": 0.0}, "max_standard_error above 0"),
    ],
)
def test_a_wrong_plan_is_named(values: dict, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        plan_from_json(values)


@pytest.mark.parametrize("change", [{"batch": 8}, {"threads": 4}, {"optimisation": "basic"}, {"runtime": "other"}])
def test_what_changes_latency_changes_the_file_name(change: dict) -> None:
    assert Target(**change).slug() != Target().slug() == "onnxruntime-fp32-b1-t1"
