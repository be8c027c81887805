"""A device in somebody's rounds: how it is taken in, what it keeps of that, and how it takes part."""
