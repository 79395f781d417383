"""Facts of an NVIDIA GPU, from reports of nvidia-smi in the forms of several drivers."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from agents import runtime_device

from hwprof import gpu
from hwprof.client import AgentClient
from hwprof.gpu import GpuFacts, braked, during, parse_report, read_gpu
from hwprof.host import device_slug
from hwprof.target import Plan, Target

H200 = "NVIDIA H200, compute capability 9.0"
NEW = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>570.86.15</driver_version>
  <cuda_version>12.8</cuda_version>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA H200</product_name>
    <persistence_mode>Enabled</persistence_mode>
    <mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
    <serial>1650000000001</serial>
    <uuid>GPU-aaaaaaaa-0000</uuid>
    <performance_state>P0</performance_state>
    <clocks_event_reasons>
      <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
      <clocks_event_reason_sw_power_cap>Not Active</clocks_event_reason_sw_power_cap>
      <clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>
    </clocks_event_reasons>
    <clocks_event_reasons_counters>
      <clocks_event_reasons_counters_sw_power_cap>1000000 us</clocks_event_reasons_counters_sw_power_cap>
      <clocks_event_reasons_counters_sw_therm_slowdown>0 us</clocks_event_reasons_counters_sw_therm_slowdown>
      <clocks_event_reasons_counters_hw_therm_slowdown>5000000 us</clocks_event_reasons_counters_hw_therm_slowdown>
      <clocks_event_reasons_counters_hw_power_brake>0 us</clocks_event_reasons_counters_hw_power_brake>
    </clocks_event_reasons_counters>
    <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
    <temperature><gpu_temp>34 C</gpu_temp><memory_temp>40 C</memory_temp></temperature>
    <gpu_power_readings>
      <average_power_draw>76.00 W</average_power_draw>
      <instant_power_draw>77.25 W</instant_power_draw>
      <current_power_limit>700.00 W</current_power_limit>
    </gpu_power_readings>
    <module_power_readings><current_power_limit>N/A</current_power_limit></module_power_readings>
    <clocks><graphics_clock>345 MHz</graphics_clock><sm_clock>345 MHz</sm_clock><mem_clock>3201 MHz</mem_clock></clocks>
    <applications_clocks>
      <graphics_clock>Requested functionality has been deprecated</graphics_clock>
    </applications_clocks>
  </gpu>
</nvidia_smi_log>
"""
OLD = """<nvidia_smi_log>
  <driver_version>470.57.02</driver_version>
  <gpu id="00000000:3B:00.0">
    <product_name>Tesla T4</product_name>
    <persistence_mode>Disabled</persistence_mode>
    <mig_mode><current_mig>N/A</current_mig></mig_mode>
    <serial>0320000000000</serial>
    <uuid>GPU-bbbbbbbb-0000</uuid>
    <clocks_throttle_reasons>
      <clocks_throttle_reason_sw_power_cap>Active</clocks_throttle_reason_sw_power_cap>
      <clocks_throttle_reason_hw_thermal_slowdown>Not Active</clocks_throttle_reason_hw_thermal_slowdown>
      <clocks_throttle_reason_hw_power_brake_slowdown>Active</clocks_throttle_reason_hw_power_brake_slowdown>
    </clocks_throttle_reasons>
    <temperature><gpu_temp>84 C</gpu_temp></temperature>
    <power_readings><power_draw>69.98 W</power_draw><power_limit>70.00 W</power_limit></power_readings>
    <clocks><sm_clock>705 MHz</sm_clock><mem_clock>5000 MHz</mem_clock></clocks>
    <applications_clocks><graphics_clock>585 MHz</graphics_clock><mem_clock>5001 MHz</mem_clock></applications_clocks>
  </gpu>
</nvidia_smi_log>
"""


def facts(report: str = NEW, accelerator: str = H200, **options) -> GpuFacts:
    return parse_report(report.encode(), accelerator, **options)


def test_a_report_of_a_new_driver():
    found = facts(seconds=7.0)
    assert found.identity == {
        "gpu_driver": "570.86.15",
        "gpu_mig": "Disabled",
        "gpu_ecc": "Enabled",
        "gpu_power_limit_w": "700",
    }
    assert found.state == {
        "gpu_sm_mhz": "345",
        "gpu_memory_mhz": "3201",
        "gpu_power_w": "77.25",
        "gpu_temperature_c": "34",
        "gpu_pstate": "P0",
        "gpu_persistence": "Enabled",
        "gpu_serial": "1650000000001",
    }
    assert found.slowed_us == {
        "sw_power_cap": 1_000_000,
        "sw_thermal_slowdown": 0,
        "hw_thermal_slowdown": 5_000_000,
        "hw_power_brake_slowdown": 0,
    }
    assert found.active == {"gpu_idle"}
    assert found.seconds == 7.0


def test_a_report_of_an_old_driver():
    found = facts(OLD, "Tesla T4, compute capability 7.5")
    assert found.identity == {
        "gpu_driver": "470.57.02",
        "gpu_application_mhz": "585",
        "gpu_power_limit_w": "70",
    }
    assert (found.state["gpu_power_w"], found.state["gpu_temperature_c"]) == ("69.98", "84")
    assert "gpu_pstate" not in found.state
    assert found.slowed_us == {}
    assert found.active == {"sw_power_cap", "hw_power_brake_slowdown"}


def test_a_serial_is_no_part_of_the_identity():
    other = NEW.replace("1650000000001", "1650000000002").replace("GPU-aaaaaaaa", "GPU-cccccccc")
    assert facts(other).identity == facts().identity
    assert facts(other).state["gpu_serial"] == "1650000000002"
    assert facts(NEW.replace("1650000000001", "N/A")).state["gpu_serial"] == "GPU-aaaaaaaa-0000"


@pytest.mark.parametrize(
    ("old", "new"),
    [("700.00 W", "400.00 W"), ("570.86.15", "580.10"), ("<current_mig>Disabled", "<current_mig>Enabled"),
     ("<current_ecc>Enabled", "<current_ecc>Disabled")],
)  # fmt: skip
def test_what_changes_latency_changes_the_identity(old, new):
    assert facts(NEW.replace(old, new)).identity != facts().identity


def test_the_power_limit_of_a_laptop_moves_by_itself():
    name = "NVIDIA GeForce RTX 4070 Laptop GPU"
    found = facts(NEW.replace("NVIDIA H200", name), name)
    assert found.state
    assert "gpu_power_limit_w" not in found.identity


def several(*names: str) -> str:
    entries = [
        f"<gpu><product_name>{name}</product_name><uuid>GPU-{number}{number}</uuid>"
        f"<temperature><gpu_temp>{number} C</gpu_temp></temperature></gpu>"
        for number, name in enumerate(names)
    ]
    return f"<nvidia_smi_log>{''.join(entries)}</nvidia_smi_log>"


@pytest.mark.parametrize(
    ("accelerator", "visible", "chosen"),
    [
        ("NVIDIA A100, compute capability 8.0", "", "1"),
        ("NVIDIA A10, compute capability 8.6", "", "0"),
        ("NVIDIA A100", "", "1"),
        ("NVIDIA A100 MIG 1g.10gb, compute capability 8.0", "MIG-123", "1"),
        ("NVIDIA A100, compute capability 8.0", "2", "2"),
        ("NVIDIA A100, compute capability 8.0", "2,1", "2"),
        ("NVIDIA A100, compute capability 8.0", "GPU-22", "2"),
        # torch counts the fastest GPU first, nvidia-smi by the slot: a number that names another kind is not believed
        ("NVIDIA A100, compute capability 8.0", "0", "1"),
        ("NVIDIA A100, compute capability 8.0", "9", "1"),
        ("NVIDIA A100, compute capability 8.0", "GPU-00", "1"),
        ("NVIDIA A100-SXM4-80GB, compute capability 8.0", "", "3"),
        ("NVIDIA H200, compute capability 9.0", "0", None),
        ("Intel NPU", "", None),
    ],
)
def test_the_gpu_that_is_used_is_found(accelerator, visible, chosen):
    report = several("NVIDIA A10", "NVIDIA A100", "NVIDIA A100", "NVIDIA A100-SXM4-80GB", "")
    assert facts(report, accelerator, visible=visible).state.get("gpu_temperature_c") == chosen


@pytest.mark.parametrize(
    "report",
    [
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        NEW[: len(NEW) // 2],
        "<nvidia_smi_log></nvidia_smi_log>",
        "<nvidia_smi_log><gpu></gpu></nvidia_smi_log>",
        '<?xml version="1.0" encoding="no-such"?><nvidia_smi_log/>',
        "\0",
    ],
)
def test_a_report_that_says_nothing_is_no_error(report):
    assert facts(report) == GpuFacts()


@pytest.mark.parametrize("place", ["34 C", "345 MHz", "77.25 W", "5000000 us", "Enabled", "Not Active"])
@pytest.mark.parametrize("text", ["", "N/A", "[Not Supported]", "&#228;", "9" * 400, "-1 C", "1.2.3 W"])
def test_any_value_may_be_missing_or_odd(place, text):
    found = facts(NEW.replace(place, text))
    assert all(found.identity.values())
    assert all(found.state.values())
    during(found, found)
    braked(found, found)


def after(seconds: float = 10.0, **slowed_us: int) -> GpuFacts:
    """A reading `seconds` after `facts()`, in which each reason slowed the GPU for that long."""
    found = facts(NEW.replace("345 MHz", "1980 MHz").replace("34 C", "61 C"), seconds=seconds)
    return replace(found, slowed_us={name: us + slowed_us.get(name, 0) for name, us in found.slowed_us.items()})


def test_the_state_over_a_measurement():
    state = during(facts(), after(sw_power_cap=3_400_000))
    assert state["gpu_sm_mhz"] == "345 -> 1980"
    assert state["gpu_temperature_c"] == "34 -> 61"
    assert state["gpu_memory_mhz"] == "3201"
    assert state["gpu_slowed"] == "sw_power_cap 34%"
    assert during(facts(), after())["gpu_slowed"] == "no"
    assert during(GpuFacts(), GpuFacts()) == {}
    assert during(GpuFacts(), after())["gpu_sm_mhz"] == "1980"


@pytest.mark.parametrize(
    ("slowed", "refused"),
    [
        ({}, None),
        ({"sw_power_cap": 9_000_000}, None),
        ({"sw_thermal_slowdown": 9_000_000}, None),
        ({"hw_thermal_slowdown": 50_000}, None),  # half a percent of the time
        ({"hw_thermal_slowdown": 200_000}, "the GPU braked (hw_thermal_slowdown, 61 degrees)"),
        ({"hw_power_brake_slowdown": 9_000_000}, "the GPU braked (hw_power_brake_slowdown, 61 degrees)"),
    ],
)
def test_the_hardwares_brakes_refuse_a_group(slowed, refused):
    found = braked(facts(), after(**slowed))
    assert found is None if refused is None else str(found).startswith(refused)


def test_without_counters_what_is_active_counts():
    old = facts(OLD, "Tesla T4")
    assert "hw_power_brake_slowdown" in str(braked(GpuFacts(), old))
    assert during(old, old)["gpu_slowed"] == "hw_power_brake_slowdown 100%, sw_power_cap 100%"
    assert braked(replace(old, active=frozenset({"sw_power_cap"})), GpuFacts()) is None


def nvidia_smi(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!{sys.executable} -I\nimport sys\n{script}")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line that names its interpreter")
def test_the_program_is_asked_once_and_may_fail(programs, monkeypatch):
    asked = programs / "asked"
    assert read_gpu(H200) == GpuFacts()  # it is not installed
    nvidia_smi(programs, f"open({str(asked)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\nprint({NEW!r})")
    assert read_gpu("") == GpuFacts()
    assert not asked.exists()
    assert read_gpu(H200).identity == facts().identity
    assert read_gpu(H200).seconds > 0
    assert asked.read_text() == "-q -x\n" * 2
    nvidia_smi(programs, "sys.exit('NVIDIA-SMI has failed')")
    assert read_gpu(H200) == GpuFacts()
    monkeypatch.setattr(gpu, "_SECONDS", 0.3)
    nvidia_smi(programs, "import time\ntime.sleep(5)")
    assert read_gpu(H200) == GpuFacts()
    (programs / "nvidia-smi").write_text("no program")
    assert read_gpu(H200) == GpuFacts()


RUNTIME = """
import time
from hwprof.timing import Clock

class Fake:
    def versions(self):
        return {"fake": "1", "accelerator": "NVIDIA H200, compute capability 9.0"}
    def clock(self, target):
        return Clock(cpu=None)
    def load(self, path, target, profile_nodes):
        return self
    def run(self):
        time.sleep(0.001)
    def close(self):
        pass
"""
# Every time it is asked, the brake has been on for another second.
BRAKING = """
from pathlib import Path
count = Path(__file__).with_name("count")
times = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (times + 1))
print(REPORT.replace("5000000 us", f"{times * SECOND} us").replace("345 MHz", f"{345 + times} MHz"))
"""


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line that names its interpreter")
@pytest.mark.parametrize("second", [0, 1_000_000])
def test_a_group_carries_its_gpu_and_is_refused_if_that_braked(programs, tmp_path, second):
    nvidia_smi(programs, f"REPORT, SECOND = {NEW!r}, {second}\n{BRAKING}")
    plan = Plan(sweeps=3, max_sweeps=3, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
    (tmp_path / "net").touch()
    with AgentClient(runtime_device(RUNTIME, tmp_path), Target(runtime="fake")) as client:
        assert client.fingerprint["gpu_driver"] == "570.86.15"
        assert client.fingerprint["gpu_power_limit_w"] == "700"
        assert "1650000000001" not in str(client.fingerprint)
        assert client.ready["state"]["gpu_serial"] == "1650000000001"
        assert device_slug(client.fingerprint) == "nvidia-h200"
        group = client.measure({"net": tmp_path / "net"}, {"anchor": tmp_path / "net"}, plan)
    assert group.state["gpu_sm_mhz"] == "346 -> 347"  # the first time was the one at opening
    assert (group.state["gpu_slowed"], group.results[0].refused) == (
        ("hw_thermal_slowdown 100%", braked(facts(), after(hw_thermal_slowdown=10**7)).replace("61", "34"))
        if second
        else ("no", None)
    )


@pytest.mark.parametrize(
    ("facts", "slug"),
    [
        ({"accelerator": "NVIDIA H200, compute capability 9.0"}, "nvidia-h200"),
        ({"accelerator": "NVIDIA GeForce RTX 3090"}, "nvidia-geforce-rtx-3090"),
        ({"accelerator": "Tesla T4, compute capability 7.5"}, "tesla-t4"),
        ({"accelerator": ""}, "amd-epyc-2-cores"),
        ({}, "amd-epyc-2-cores"),
    ],
)
def test_the_table_of_a_gpu_is_in_its_folder(facts, slug):
    assert device_slug({"cpu": "AMD EPYC", "cores": "2", **facts}) == slug
