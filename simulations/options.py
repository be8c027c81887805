"""Options that several commands of simulations have."""

from __future__ import annotations

from typing import Annotated

import typer

Compute = Annotated[
    str | None,
    typer.Option(
        help="What runs the graphs of devices: onnxruntime (the default), or torch: torch:cuda, "
        "torch:cuda:bfloat16, torch:cpu."
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(help="What runs the devices: cohort (the fast one, the default), flower or serial."),
]
