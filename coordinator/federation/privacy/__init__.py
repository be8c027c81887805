"""User-level differential privacy: who is sampled, the noise on a round's sum, and its cost so far."""
