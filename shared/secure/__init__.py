"""Secure aggregation: what both sides of it must do alike, and the messages of its four stages."""
