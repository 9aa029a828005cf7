"""The model card: lineage in the hub's front matter, the recipe of the growth in words."""

from __future__ import annotations

import json
from typing import Any

TEMPLATE = """---
library_name: transformers
tags:
- meristem
- model-growth
{base_model}---

# {title}

Made by [Meristem]({url}) with **{methods}**; loads with plain transformers{trust}.

| | |
|---|---|
| source | `{source}` |
| function preserved | {preserved} |
{new_layers}
```json
{options}
```
"""
URL = "https://pypi.org/project/meristem-nn/"


def model_card(record: dict[str, Any]) -> str:
    """README.md of a grown model, from what `meristem.json` records."""
    methods = record.get("methods", [])
    certificate = record.get("certificate")
    named = record.get("sources", [record.get("source", {})])
    sources = [entry.get("name", "") for entry in named]
    grouped = any(m.get("norm") == "grouped" for m in methods)
    on_hub = list(dict.fromkeys(entry["name"] for entry in named if entry.get("revision")))
    source = ", ".join(sources)
    return TEMPLATE.format(
        base_model="base_model:\n" + "".join(f"- {name}\n" for name in on_hub) if on_hub else "",
        title=f"A model made from {source}",
        url=URL,
        trust=" and `trust_remote_code=True`: its class is in `modeling_grouped.py`" if grouped else "",
        methods=", then ".join(m["method"] for m in methods),
        source=source,
        preserved=_preserved(certificate),
        new_layers="".join(
            f"| new {axis.replace('_', ' ')}, counted from 0 | {', '.join(map(str, places))} |\n"
            for axis, places in record.get("new_layers", {}).items()
        ),
        options=json.dumps(methods, indent=2),
    )


def _preserved(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "not measured"
    verdict = "yes" if certificate["holds"] else "no"
    return f"{verdict}: relative logit error {certificate['relative_error']:.1e}, measured in {certificate['dtype']}"
