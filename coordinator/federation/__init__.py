"""Rounds on the coordinator's side, free of any transport: settings, aggregation and the journal."""
