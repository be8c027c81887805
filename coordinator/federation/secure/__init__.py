"""A coordinator's half of a secure sum, free of any transport: the plan, the stages, the unmasking."""
