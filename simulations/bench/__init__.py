"""Benchmarks: what a device and a server of many owners cost, beside torch, transformers and PEFT."""
