"""Supernets: one set of weights for all architectures of a space, trained together."""
