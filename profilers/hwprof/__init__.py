"""hwprof: measures model files on a device. Knows nothing of architecture search; needs only the runtime it measures."""

__version__ = "0.1.0"
