"""hwprof: measures model files on a device. Knows nothing of architecture search."""

__version__ = "0.1.0"
