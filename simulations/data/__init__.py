"""Where examples come from: a generated community and public data sets; how people are split."""
