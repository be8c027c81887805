"""Homes of many simulated devices in a few files: examples in SQLite, profiles in one table per release."""
