"""Rounds with a release of one's own, among people of one's own: `umbel rounds`."""
