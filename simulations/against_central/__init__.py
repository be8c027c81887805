"""Federated rounds held against central training of the same tensors, on the same people's examples."""
