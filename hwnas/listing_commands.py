"""`hwnas devices` and `hwnas spaces`: what can be measured from here, and what can be searched."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

DEVICES_EXAMPLE = "Example: hwnas devices local ssh:pi@board"
SPACES_EXAMPLE = "Example: hwnas spaces mobilenetv3"

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

out = Console()


def devices(
    device: Annotated[
        list[str] | None,
        typer.Argument(
            help="Devices as recipes write them, e.g. ssh:pi@board; by default this machine and what adb sees."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the devices and runtimes that can be measured from here, with their versions, and why not."""
    from hwprof.inventory import inventory

    found = list(inventory(device or ()))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    table = Table()
    for heading in ("Device", "Runtime", "State", "Machine"):
        table.add_column(heading, overflow="fold")
    for facts in found:
        table.add_row(*(Text(str(facts[key])) for key in ("device", "runtime", "state", "machine")))
    out.print(table)


def spaces(
    name: Annotated[str | None, typer.Argument(help="A space, to see its slots and arguments.")] = None,
    as_json: Json = False,
) -> None:
    """List the search spaces, or the arguments of one with their defaults."""
    from hwnas.spaces import SPACES, make_space, space_arguments

    listed: dict[str, dict[str, Any]] = {}
    for each in SPACES if name is None else [name]:
        space = make_space(each, {})
        listed[each] = {"slots": len(space.slots), "size": float(space.size), "arguments": space_arguments(each)}
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
        return
    for each, facts in listed.items():
        table = Table(title=f"{each}: {facts['slots']} slots, {facts['size']:.3g} combinations", title_justify="left")
        table.add_column("Argument")
        table.add_column("Default", overflow="fold")
        for argument, default in facts["arguments"].items():
            table.add_row(argument, Text(json.dumps(default)))
        out.print(table)
