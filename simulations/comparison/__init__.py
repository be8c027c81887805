"""The comparison of methods and rivals on the same people: `umbel simulate methods`."""
