"""A channel of releases: signed metadata by The Update Framework, and blobs named by content."""
