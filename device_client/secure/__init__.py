"""A device's half of a secure sum, free of any transport: its answers, and what it keeps between them."""
