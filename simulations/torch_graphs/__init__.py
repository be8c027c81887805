"""A release's own graphs, run by torch: on a GPU, or a person per row where every person has other values."""
