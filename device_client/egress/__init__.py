"""The gate: what leaves a device passes one function, is checked, allowed by its owner, and written down."""
