"""One process from its start to its first prediction: python -m rival.predict ORDER.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from .model import PersonalBert, encoded


def main() -> None:
    """Loads everything, predicts one text, prints the logits."""
    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(order["threads"])
    folder = Path(order["folder"])
    model = PersonalBert(folder)
    model.fold(load_file(order["profile"])["user"])
    ids, mask = encoded(folder, order["texts"], order["max_tokens"])
    with torch.inference_mode():
        found = model(ids, mask).softmax(-1)
    sys.stdout.write(json.dumps({"probabilities": found.tolist()}) + "\n")


if __name__ == "__main__":
    main()
