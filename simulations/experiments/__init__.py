"""Experiments: a folder each, with its configuration, a README and, where it is slow, its result."""
