"""The model card: the lineage in the front matter for the hub, and the recipe of the growth in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from meristem.checkpoints.lineage import Lineage, lineage

TEMPLATE = """---
{metadata}---

# {title}

Made by [Meristem]({url}) with **{methods}**; loads with plain transformers{trust}.

| | |
|---|---|
| source | `{source}` |
{licence}| function kept | {kept} |
{new_layers}
```json
{options}
```
{citation}"""
OWN_TAGS = ("meristem", "model-growth")
URL = "https://pypi.org/project/meristem-nn/"


def model_card(record: dict[str, Any], sources: Iterable[Path] = ()) -> str:
    """The README.md of a grown model.

    Args:
        record: the content of `meristem.json`.
        sources: the directories of the models that it was made from. Licence, language and citation are
            inherited from their cards.
    """
    methods = record.get("methods", [])
    named = record.get("sources", [record.get("source", {})])
    names = [entry.get("name", "") for entry in named]
    on_hub = list(dict.fromkeys(entry["name"] for entry in named if entry.get("revision")))
    inherited = lineage(sources)
    grouped = any(m.get("norm") == "grouped" for m in methods)
    source = ", ".join(names)
    return TEMPLATE.format(
        metadata=_front_matter(on_hub, len(set(names)), inherited),
        title=f"A model made from {source}",
        url=URL,
        trust=" and `trust_remote_code=True`: its class is in `modeling_grouped.py`" if grouped else "",
        methods=", then ".join(m["method"] for m in methods),
        source=source,
        licence=_licence(inherited),
        kept=_kept(record.get("certificate")),
        new_layers="".join(
            f"| new {axis.replace('_', ' ')}, counted from 0 | {', '.join(map(str, places))} |\n"
            for axis, places in record.get("new_layers", {}).items()
        ),
        options=json.dumps(methods, indent=2),
        citation=_citation(inherited.citations),
    )


def _front_matter(on_hub: Sequence[str], parents: int, inherited: Lineage) -> str:
    """YAML for the hub. Directories have no name there, so the base of such a source is what its own card
    names.
    """
    import yaml

    base = list(on_hub) or list(inherited.ancestors)
    relation = "merge" if parents > 1 else "finetune"  # the hub knows no growth
    tags = inherited.metadata.get("tags", [])
    content = {
        "library_name": "transformers",
        **inherited.metadata,
        "tags": list(dict.fromkeys([*OWN_TAGS, *([tags] if isinstance(tags, str) else tags)])),
        **({"base_model": base, "base_model_relation": relation} if base else {}),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _licence(inherited: Lineage) -> str:
    """A row of the table. The licences of the sources hold for what is made from them."""
    kinds = inherited.metadata.get("license")
    if not kinds:
        return ""
    named = ", ".join(kinds) if isinstance(kinds, list) else kinds
    cell = named.replace("|", "\\|").replace("`", "")
    return f"| licence of the source | {cell} |\n"


def _citation(entries: Sequence[str]) -> str:
    if not entries:
        return ""
    return "\n## Citation of the source\n\n```bibtex\n" + "\n\n".join(entries) + "\n```\n"


def _kept(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "not measured"
    verdict = "yes" if certificate["holds"] else "no"
    return f"{verdict}: relative logit error {certificate['relative_error']:.1e}, measured in {certificate['dtype']}"
