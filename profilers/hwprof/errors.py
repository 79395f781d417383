"""Every error that hwprof raises on purpose; each says what, the value, and the next step."""

from __future__ import annotations


class HwprofError(Exception):
    """Root of all errors raised on purpose by hwprof."""


class TargetError(HwprofError, ValueError):
    """A target or plan cannot be used as written."""


class RuntimeMissingError(HwprofError, ImportError):
    """The runtime to be measured is not installed on the device."""


class DeviceError(HwprofError, ConnectionError):
    """The device, or the agent on it, cannot be started or went away."""


class AcceleratorError(DeviceError):
    """What a runtime needs beside itself (a GPU, its driver) is not there, or does not work."""


class MeasurementError(HwprofError, RuntimeError):
    """A model file could not be loaded or run on the device."""


class TableError(HwprofError, ValueError):
    """A latency table is corrupted, of another schema, or of another target."""


class BusyError(HwprofError, RuntimeError):
    """Another process measures the same table, or this machine, right now."""
