"""Releases on a device: trusted, fetched, taken over, exchanged for newer ones that prove as good."""
