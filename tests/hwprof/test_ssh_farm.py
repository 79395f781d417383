"""One table from two machines behind OpenSSH's own server, one of which is switched off in the middle."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from sshd import Sshd

from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.devices import make_devices
from hwprof.table import read_table
from hwprof.target import Plan, Target

pytestmark = pytest.mark.peers

PLAN = Plan(sweeps=3, max_sweeps=3, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)


def test_two_machines_profile_one_table_and_one_of_them_may_vanish(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    servers = [Sshd(folder) for folder in folders]
    for server in servers:
        server.start()
    space = NasBench201Space(channels=4, cells=1, resolution=8, num_classes=4)
    texts = [server.text() for server in servers]
    target, path = Target(device=", ".join(texts)), tmp_path / "table.json"
    seen: set[str] = set()

    def switch_off_and_on() -> None:
        """The second machine goes as soon as it has measured something, and comes back."""
        journal, end = path.with_suffix(".journal"), time.monotonic() + 60
        while time.monotonic() < end and texts[1] not in seen:
            lines = journal.read_text().splitlines()[1:] if journal.exists() else []
            seen.update(json.loads(line)["device"] for line in lines if line.endswith("}"))
            time.sleep(0.05)
        servers[1].stop()
        time.sleep(1.0)
        servers[1].start()

    trouble = threading.Thread(target=switch_off_and_on)
    trouble.start()
    try:
        table = profile(
            space, target, make_devices(target.device), path, SweepConfig(networks=4, searched=0, group=2, plan=PLAN)
        )
    finally:
        trouble.join()
        for server in servers:
            server.stop()
    assert texts[1] in seen
    assert table.provenance["devices"] == sorted(texts)
    assert {row.origin for row in table.rows.values()} <= {"measured", "estimated"}
    assert read_table(path).target == target
    assert not path.with_suffix(".journal").exists()
