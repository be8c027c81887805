"""umbel: a language model that fits each person; their texts and profile never leave the device."""

import os

__version__ = "0.1.0"

# onnxruntime reads this when it is first imported. Else it gives the machine a number, keeps events about
# the process, and looks for its maker's server.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
