"""YAML in which no key may occur twice. PyYAML keeps the last one, and would drop a node without a
message.
"""

from __future__ import annotations

from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """Plain dictionaries, lists and values.

    Raises:
        yaml.YAMLError: for broken text, for Python tags, and for a key that occurs twice.
    """
    return yaml.load(text, _UniqueKeys)


class _UniqueKeys(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the keys as they are written, before `<<` merges others into them."""
        node, seen = super().compose_mapping_node(anchor), dict[str, int]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise yaml.YAMLError(
                        f"key {key.value!r} is given twice, in line {seen[key.value]} and in line {line}"
                    )
                seen[key.value] = line
        return node
