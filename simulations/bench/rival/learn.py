"""One process that learns a profile from examples and keeps it: python -m rival.learn ORDER.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from .learning import Support, learned, nll_of, strength_of
from .model import PersonalBert, encoded


def main() -> None:
    """Learns with the release's recipe, prints what came of it."""
    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(order["threads"])
    folder, recipe = Path(order["folder"]), order["recipe"]
    model = PersonalBert(folder)
    people = model.personalise()
    ids, mask = encoded(folder, order["texts"], order["max_tokens"])
    labels = torch.tensor(order["labels"])
    support = Support(ids, mask, labels, torch.zeros(len(labels), dtype=torch.int64))
    vectors, generic = learned(model, people, support, 1, recipe)
    strength = strength_of(model, people, support, recipe)
    vectors = (vectors * strength).half()
    save_file({"user": vectors[0]}, order["profile"])
    personal = float(nll_of(model, people, vectors.float(), support).mean())
    found = {"nll_generic": generic, "nll_personal": personal, "strength": strength}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
