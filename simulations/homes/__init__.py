"""Homes of many simulated devices in a few files: examples in Parquet, profiles in one table per release."""
