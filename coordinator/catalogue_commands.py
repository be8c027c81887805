"""`umbel methods`: which methods there are, and what one of them computes, learns and costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from umbel.coordinator.catalogue import MethodRow, TensorRow

app = typer.Typer(invoke_without_command=True)

_Backbone = Annotated[
    str | None, typer.Option(help="Folder or name of an encoder; by default all-MiniLM-L6-v2.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]


@app.callback()
def methods(context: typer.Context, backbone: _Backbone = None, as_json: _Json = False) -> None:
    """List the methods: private bytes of a person, shared parameters of everyone, the paper.

    Sizes are those of the default options on the chosen encoder.

    For instance: umbel methods

    Or, one of them in full: umbel methods explain plora
    """
    if context.invoked_subcommand is not None:
        return
    from umbel.coordinator.backbone import MINILM, load_backbone
    from umbel.coordinator.catalogue import describe_all

    name = backbone or MINILM
    rows = describe_all(load_backbone(name))
    if as_json:
        typer.echo(json.dumps([row.as_json() for row in rows], indent=2))
        return
    typer.echo(f"On {name}, with default options. In full: umbel methods explain NAME")
    for row in rows:
        typer.echo(
            f"\n{row.name}: {row.private_bytes:,} private bytes a person, {row.shared_parameters:,} shared "
            f"parameters\n  {row.equation}\n  {row.citation}"
        )


@app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method, such as plora.")],
    backbone: _Backbone = None,
    as_json: _Json = False,
) -> None:
    """Explain one method: its equation, its tensors with their shapes, its options.

    For instance: umbel methods explain plora
    """
    from umbel.coordinator.backbone import MINILM, load_backbone
    from umbel.coordinator.catalogue import describe
    from umbel.coordinator.methods import method_class

    method_class(name)  # before the encoder is loaded: a mistyped name is told at once
    chosen = backbone or MINILM
    row = describe(name, load_backbone(chosen))
    typer.echo(json.dumps(row.as_json(), indent=2) if as_json else _words(row, chosen))


def _words(row: MethodRow, backbone: str) -> str:
    trained = ", ".join(row.round_tensors) or "none"
    lines = [
        f"{row.name}: {row.citation}",
        "",
        f"  {row.equation}",
        "",
        row.explanation,
        "",
        f"Private, on {backbone}: {row.private_values:,} values, {row.private_bytes:,} bytes",
        *_tensors(row.private),
        "",
        f"Shared: {row.shared_parameters:,} parameters; devices may train in rounds: {trained}",
        *_tensors(row.shared),
        "",
        f"Options, under [methods.{row.name}]:",
        *(f"  {option.name} = {json.dumps(option.default)}  {option.description}" for option in row.options),
    ]
    return "\n".join(lines)


def _tensors(rows: Sequence[TensorRow]) -> list[str]:
    return [
        f"  {row.name} {row.shape}"
        + (f" x {row.count}" if row.count > 1 else "")
        + (f"  kept as {row.storage}" if row.storage else "")
        for row in rows
    ]
