"""Onboarding: a network that writes a new user's first profile, trained by playing new users."""
