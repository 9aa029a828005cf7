"""`meristem inspect`."""

from __future__ import annotations

import textwrap
from typing import Any

from meristem.cli.options import SHRINKING
from meristem.cli.output import Answer, calm_libraries
from meristem.cli.parameters import Drop, Source, Trust
from meristem.cli.progress import step


def inspect(source: Source, drop: Drop = None, trust_remote_code: Trust = False) -> Answer:
    """Show a network's axes, blocks and tensors, and how each is known."""
    calm_libraries()
    with step(f"reading {source}"):
        from meristem.checkpoints.source import find_source

        found = find_source(source, trust_remote_code)

        from meristem.anatomy import Anatomy
        from meristem.anatomy.table import by_block
        from meristem.checkpoints import open_streamed
        from meristem.checkpoints.provenance import shares
        from meristem.growth import METHODS

        anatomy = Anatomy.of(open_streamed(found, trust_remote_code, drop or []))
    print(f"{source}: {anatomy.builder.model_type}\n\n{by_block(anatomy)}\n")
    told = shares(found.path)
    growing = [name for name in METHODS if name not in SHRINKING]
    for line in (*told, f"methods to grow: {', '.join(growing)}", f"methods to shrink: {', '.join(SHRINKING)}"):
        print(textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    content = {"source": source, "revision": found.revision, **_anatomy(anatomy)}
    return Answer({**content, "provenance": told, "methods": list(METHODS)})


def _anatomy(anatomy: Any) -> dict[str, Any]:
    return {
        "model_type": anatomy.builder.model_type,
        "axes": [{"name": axis.name, "size": axis.size, "from": axis.source} for axis in anatomy.axes.values()],
        "blocks": [{"axis": b.axis, "length": b.length, "prefix": b.prefix} for b in anatomy.blocks],
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "block": list(tensor.block) if tensor.block else None,
                "tied_to": tensor.tied_to,
                "dimensions": [
                    {"role": d.role, "layout": str(d.layout), "known_by": d.source} for d in tensor.dimensions
                ],
            }
            for tensor in anatomy.tensors.values()
        ],
    }
