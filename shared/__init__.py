"""The contract between coordinator and device: numpy and the standard library only."""
