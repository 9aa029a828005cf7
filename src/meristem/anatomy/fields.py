"""Read and write the sizes in a config. Dotted paths lead to nested configs and into lists of stages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from meristem.anatomy.conventions import (
    AXES_BY_TYPE,
    DECODER_SCOPE,
    DEPTH_FIELDS,
    DEPTH_LISTS,
    DEPTHS_BY_TYPE,
    ENCODER_SCOPE,
    ENCODER_WIDTH,
    ENCODERS_AND_DECODERS,
    FIELDS,
    JOINED_PARTS,
    JOINING_FIELDS,
    JOINT_FIELDS,
    LEARNED,
    NUMBERED_FIELDS,
    OUTPUT_BESIDE,
)


def read_field(config: Any, path: str) -> Any:
    """The value at a path such as "num_hidden_layers", "text_config.hidden_size" or "depths.2". None if it
    does not exist.
    """
    for part in path.split("."):
        if part.isdigit() and isinstance(config, list | tuple):
            config = config[int(part)]
        else:
            config = config.get(part) if isinstance(config, dict) else vars(config).get(part)
        if config is None:
            return None
    return config


def write_field(config: Any, path: str, value: Any) -> None:
    """Set the value at a path. A list is replaced by a changed copy of the same type."""
    owner, _, name = path.rpartition(".")
    if name.isdigit():
        values = list(read_field(config, owner))
        kind = type(read_field(config, owner))
        values[int(name)] = value
        write_field(config, owner, kind(values))
        return
    part = read_field(config, owner) if owner else config
    if isinstance(part, dict):
        part[name] = value
    else:
        setattr(part, name, value)


def main_part(config: Any, moves: Callable[[Any], bool]) -> str:
    """The path, with a trailing dot, of the config that sets the width of this network. "" for plain configs.

    A composite (a language model with a vision tower) grows in its language model, if the present network has
    one.

    Args:
        config: the config.
        moves: a function that says whether a changed config builds another network.
    """
    parts = {path.rstrip("."): part for path, part in _parts(config) if path}
    text = text_part(config)
    ordered = sorted(parts, key=lambda name: (parts[name] is not text, name.count(".")))
    if not parts or (text is config and any(_sizes_at(vars(config).get(name)) for name in FIELDS["hidden"])):
        return ""
    for name in ordered:
        fields = [field for field in FIELDS["hidden"] if _sizes_at(vars(parts[name]).get(field))]
        if any(moves(_doubled(config, f"{name}.{field}")) for field in fields):
            return f"{name}."
    return ""


def text_part(config: Any) -> Any:
    """The config of the language model. If there are two, that of the decoder."""
    try:
        return config.get_text_config()
    except ValueError:
        return config.get_text_config(decoder=True)


def counterparts(config: Any, root: str) -> list[str]:
    """The other parts of a composed encoder-decoder (paths as in `main_part`), which widen with the main
    part.

    Both have the width of one stream, because cross-attention and often a shared embedding connect them.
    """
    named = (*JOINED_PARTS.get(config.model_type, ()), *(ENCODERS_AND_DECODERS if config.is_encoder_decoder else ()))
    if not root:
        return []
    others = {f"{n}.": p for n, p in vars(config).items() if n in named and hasattr(p, "model_type")}
    texts = {name: "text_config." if hasattr(part, "text_config") else "" for name, part in others.items()}
    return [name + texts[name] for name in others if name != root]


def depth_at(config: Any, path: str) -> int:
    """The number of layers at a path from `depth_paths`."""
    value = read_field(config, path)
    return value if isinstance(value, int) else len(value)


def is_numbered(config: Any) -> bool:
    """Whether what a layer computes depends on its number (see `NUMBERED_FIELDS`)."""
    return any(vars(part).get(name) for _, part in _parts(config) for name in NUMBERED_FIELDS)


def joining_paths(config: Any, root: str) -> list[str]:
    """The paths of the fields by which the other parts of a composite may state the width of its main part
    (see `JOINING_FIELDS`).
    """
    if not root:
        return []
    main = vars(read_field(config, root.rstrip(".")))
    others = [(path, part) for path, part in _parts(config) if path != root]
    joint = [name for name in JOINT_FIELDS if not any(name in vars(part) for path, part in others if path)]
    found = []
    for path, part in others:
        names = [name for name in JOINING_FIELDS if name not in main and name not in joint]
        names += [] if path else ["hidden_size"]
        names += [output for width, output in OUTPUT_BESIDE.items() if {width, output} <= vars(part).keys()]
        names = [name for name in names if not _of_sibling(config, path, name, root)]
        found += [path + name for name in names if isinstance(vars(part).get(name), int)]
    return found


def _of_sibling(config: Any, path: str, name: str, root: str) -> bool:
    """Whether a field such as "audio_hidden_size" states the width of the "audio_config" next to its own
    part.
    """
    parent = path.rstrip(".").rpartition(".")[0]
    sibling = f"{parent}.{name.removesuffix('_hidden_size')}_config"
    return bool(parent) and f"{sibling}." != root and read_field(config, sibling) is not None


def _parts(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path with a trailing dot, config) of a config and of all configs nested in it."""
    yield path, config
    for name, part in vars(config).items():
        if hasattr(part, "model_type"):
            yield from _parts(part, f"{path}{name}.")


def axis_paths(config: Any, root: str, moves: Callable[[Any], bool]) -> dict[str, str]:
    """{axis: path of the field that sets it}. A field with one entry for each stage gives the axes stage0_…,
    stage1_…

    Args:
        config: the config.
        root: the result of `main_part`.
        moves: a function that says whether a changed config builds another network. It is used if several
            fields could set an axis, because some are only derived from others.
    """
    return _find(config, root, FIELDS, moves) | _by_type(config, AXES_BY_TYPE, moves)


def depth_paths(config: Any, root: str, moves: Callable[[Any], bool]) -> dict[str, str]:
    """{axis of depth: path}. The plain field of an encoder-decoder counts its encoder. If no field counts the
    layers, it is the path of the list that has an entry for each.

    Args:
        config: the config.
        root: as in `axis_paths`.
        moves: as in `axis_paths`.
    """
    found = _find(config, root, DEPTH_FIELDS, moves)
    found |= _by_type(config, DEPTHS_BY_TYPE, moves)
    if set(found) == {"layers"} and root.startswith(DECODER_SCOPE):  # the encoder has a config of its own
        for part in counterparts(config, root):
            layers, width = (
                _find(config, part, table).get(axis) for table, axis in ((DEPTH_FIELDS, "layers"), (FIELDS, "hidden"))
            )
            if part.startswith(ENCODER_SCOPE) and layers and width and moves(_doubled(config, width)):
                return {"encoder_layers": layers, "decoder_layers": found["layers"]}
    if not found:
        lists = [name for name in DEPTH_LISTS if isinstance(read_field(config, root + name), list | tuple)]
        found = {"layers": root + lists[0]} if lists else {}
    if "layers" in found:
        if "encoder_layers" in found:
            del found["layers"]
        elif "decoder_layers" in found:
            found["encoder_layers"] = found.pop("layers")
    return found


def _by_type(config: Any, table: Mapping[str, Mapping[str, str]], moves: Callable[[Any], bool]) -> dict[str, str]:
    """{axis: path} of what only this model type has, if the present network has it."""
    named = {
        axis: path for axis, path in table.get(config.model_type, {}).items() if _sizes_at(read_field(config, path))
    }
    found = {axis: path for axis, path in named.items() if moves(_doubled(config, path))}
    heads = {
        axis: path for axis, path in named.items() if axis.endswith("_heads")
    }  # which share out a width, and move nothing
    return found | {axis: path for axis, path in heads.items() if axis.replace("heads", "hidden") in found}


def _find(
    config: Any, root: str, table: Mapping[str, tuple[str, ...]], moves: Callable[[Any], bool] | None = None
) -> dict[str, str]:
    found: dict[str, str] = {}
    own_width = read_field(config, root + ENCODER_WIDTH) is not None
    for axis, names in table.items():
        if own_width and axis == "encoder_heads":
            continue
        present = [name for name in names if _sizes_at(read_field(config, root + name))]
        if moves is not None and (len(present) > 1 or (axis in LEARNED and present)):
            moving = [name for name in present if moves(_doubled(config, root + name))]
            present = moving or ([] if axis in LEARNED else present)
        for name in present[:1]:
            value = read_field(config, root + name)
            if isinstance(value, int):
                found[axis] = root + name
            else:
                found |= {f"stage{i}_{axis}": f"{root}{name}.{i}" for i in range(len(value))}
    return found


def _sizes_at(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(type(v) is int and v > 0 for v in values)


def _doubled(config: Any, path: str) -> Any:
    changed, value = copy.deepcopy(config), read_field(config, path)
    doubled = 2 * value if isinstance(value, int) else type(value)(2 * v for v in value)
    write_field(changed, path, doubled)
    return changed
