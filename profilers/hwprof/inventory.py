"""What can be measured from here: every runtime on a device, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hwprof.client import AgentClient
from hwprof.devices import Device
from hwprof.errors import HwprofError
from hwprof.runtimes import RUNTIMES
from hwprof.target import Target


def reachable(name: str, device: Device) -> Iterator[dict[str, str]]:
    """One entry per runtime: device, runtime, state ("ready" with versions, or the reason), machine."""
    for runtime in RUNTIMES:
        target = replace(Target(), device=name, runtime=runtime)
        try:
            with AgentClient(device, target) as client:
                identity, versions = client.ready["identity"], client.ready["versions"]
        except HwprofError as error:
            yield {"device": name, "runtime": runtime, "state": str(error), "machine": "unknown"}
        else:
            state = "ready: " + ", ".join(f"{key} {value}" for key, value in versions.items() if key != "hwprof")
            yield {
                "device": name,
                "runtime": runtime,
                "state": state,
                "machine": f"{identity['cpu']}, {identity['cores']} cores",
            }
