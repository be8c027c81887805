"""What an owner entrusts to their device: examples, profiles and a log, sealed in one SQLite file."""
