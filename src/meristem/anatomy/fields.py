"""Reading and writing the sizes in a config: nested configs and lists of stages by dotted paths."""

from __future__ import annotations

from typing import Any

from meristem.anatomy.conventions import DEPTH_FIELDS, FIELDS


def read_field(config: Any, path: str) -> Any:
    """The value at a path such as "num_hidden_layers", "text_config.hidden_size" or "depths.2"; None if it is not there."""
    for part in path.split("."):
        if part.isdigit() and isinstance(config, list | tuple):
            config = config[int(part)]
        else:
            config = config.get(part) if isinstance(config, dict) else vars(config).get(part)
        if config is None:
            return None
    return config


def write_field(config: Any, path: str, value: Any) -> None:
    """Set the value at a path; a list is replaced by a changed copy of its own kind."""
    owner, _, name = path.rpartition(".")
    if name.isdigit():
        values = list(read_field(config, owner))
        kind = type(read_field(config, owner))
        values[int(name)] = value
        write_field(config, owner, kind(values))
    elif owner:
        setattr(read_field(config, owner), name, value)
    else:
        setattr(config, name, value)


def main_part(config: Any) -> str:
    """The path, with a trailing dot, of the config of the language model in a composite of several; "" for plain ones."""
    text = config.get_text_config()
    return next((f"{name}." for name, value in vars(config).items() if value is text and text is not config), "")


def axis_paths(config: Any) -> dict[str, str]:
    """{axis: path of the field that sets it}. A field with one entry for each stage gives axes stage0_…, stage1_…"""
    return _find(config, FIELDS)


def depth_paths(config: Any) -> dict[str, str]:
    """{axis of depth: path}; the plain field of an encoder-decoder counts its encoder."""
    found = _find(config, DEPTH_FIELDS)
    if "layers" in found:
        if "encoder_layers" in found:
            del found["layers"]
        elif "decoder_layers" in found:
            found["encoder_layers"] = found.pop("layers")
    return found


def _find(config: Any, table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    root = main_part(config)
    found: dict[str, str] = {}
    for axis, names in table.items():
        for name in names:
            value = read_field(config, root + name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                found[axis] = root + name
                break
            if isinstance(value, list | tuple) and value and all(type(v) is int and v > 0 for v in value):
                found |= {f"stage{i}_{axis}": f"{root}{name}.{i}" for i in range(len(value))}
                break
    return found
