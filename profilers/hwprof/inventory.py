"""What can be measured from here: every runtime on a device, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hwprof.client import AgentClient
from hwprof.devices import DEVICES, device_class, make_device
from hwprof.errors import AcceleratorError, HwprofError, RuntimeMissingError
from hwprof.runtimes import RUNTIMES
from hwprof.target import Target


def inventory(texts: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """What `runtimes_of` says of the devices named, or of all that can be seen without being told of them."""
    for text in texts or found():
        yield from runtimes_of(text)


def found() -> list[str]:
    """Texts of the devices that can be seen from here: this machine, phones that adb lists."""
    return [text for kind in DEVICES for text in device_class(kind).found()]


def runtimes_of(text: str) -> Iterator[dict[str, str]]:
    """One entry per runtime of a device: device, runtime, state ("ready" with versions, or why not), machine.

    A device that cannot be reached at all is one entry, of the runtime "any".
    """
    try:
        device = make_device(text)
        for runtime in RUNTIMES:
            target = replace(Target(), device=text, runtime=runtime)
            try:
                with AgentClient(device, target) as client:
                    identity, versions = client.ready["identity"], client.ready["versions"]
            except (AcceleratorError, RuntimeMissingError) as error:
                yield _entry(text, runtime, str(error))
                continue
            state = "ready: " + ", ".join(f"{key} {value}" for key, value in versions.items() if key != "hwprof")
            machine = f"{identity['cpu']}, {identity['cores']} cores"
            if "emulated" in identity:
                machine += f" (emulated: {identity['emulated']})"
            yield _entry(text, runtime, state, machine)
    except HwprofError as error:
        yield _entry(text, "any", str(error))


def _entry(device: str, runtime: str, state: str, machine: str = "unknown") -> dict[str, str]:
    return {"device": device, "runtime": runtime, "state": state, "machine": machine}
