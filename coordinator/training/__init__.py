"""Trains what everyone shares on the examples of seen users."""
