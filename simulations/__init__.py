"""Populations, simulated rounds, experiments and reports. May import every other part of umbel."""
