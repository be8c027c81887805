"""The rival's side: torch, transformers and PEFT. Nothing of umbel is imported.

These files are copied into the work folder and run there as `python -m rival.NAME`.
"""
