"""Pages of reference, written from the code: commands, keys of a recipe, the public names."""

from __future__ import annotations

import importlib
import re
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

PACKAGES = {
    "growth": "Growing, fusing, shrinking",
    "anatomy": "Anatomy and axis maps",
    "certificates": "Certificates and errors",
    "subnetworks": "Parts of a network",
    "kernels": "Majority Kernels",
    "incubation": "Deep Incubation",
    "checkpoints": "Checkpoints",
    "adaptive": "Learned structure",
    "dynamics": "Dynamics of growth",
    "recipes": "Recipes",
}
ALSO = {  # what public names refer to: the bases that hold shared options, and the classes of results
    "growth": [
        "meristem.growth.methods.width.WidthMethod",
        "meristem.growth.methods.width.NoisyWidthMethod",
        "meristem.growth.methods.stacking.DepthMethod",
        "meristem.growth.fusion.fusion.Fusion",
        "meristem.growth.train_new.Frozen",
        "meristem.growth.methods.ligo.FittedLiGO",
        "meristem.growth.rank_layers.LayerRank",
    ],
    "anatomy": [
        "meristem.anatomy.structure.Axis",
        "meristem.anatomy.structure.BlockList",
        "meristem.anatomy.structure.Dimension",
        "meristem.anatomy.structure.TensorAnatomy",
        "meristem.anatomy.overrides.Multiplier",
        "meristem.algebra.unit_map.UnitMap",
    ],
    "certificates": ["meristem.errors.AnatomyError"],
    "subnetworks": ["meristem.subnetworks.schedule.Schedule", "meristem.subnetworks.path.Path"],
    "kernels": ["meristem.kernels.mixture.Mixing"],
    "incubation": ["meristem.incubation.division.Division", "meristem.incubation.hybrid.Incubation"],
}
SHARED_PAGE = {"algebra": "anatomy", "errors": "certificates"}


def cell(text: str) -> str:
    """Text for a cell of a table: one line, bars escaped."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def commands() -> str:
    """One section for each command of `meristem`: what it does, its arguments and its options."""
    from meristem.cli.main import app

    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    out = ["# Command line", "", "Written from the program's own help. `meristem COMMAND --help` prints the same.", ""]
    for name in sorted(group.commands):  # pyright: ignore[reportAttributeAccessIssue]
        out += _command(name, group.commands[name])  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(out) + "\n"


def _command(name: str, command: Any) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    usage = " ".join(["meristem", name, *(_metavar(p) for p in arguments), "[OPTIONS]" if options else ""]).strip()
    out = [f"## {name}", "", (command.help or "").replace("\x08", "").strip(), "", f"    {usage}", ""]
    examples = (command.epilog or "").split("\n\n")[1:]  # the first line is their heading
    out += ["Examples:", "", *(f"    {example}" for example in examples), ""] if examples else []
    rows = [(_whole(_metavar(p)), getattr(p, "help", "") or "", "required" if p.required else "") for p in arguments]
    rows += [(", ".join(map(_whole, [*p.opts, *p.secondary_opts])), p.help or "", _default(p)) for p in options]
    if rows:
        out += ["| argument or option | meaning | default |", "|---|---|---|"]
        out += [f"| {a} | {cell(b)} | {cell(c)} |" for a, b, c in rows]
    return [*out, ""]


def _whole(name: str) -> str:
    """A name that stays on one line on narrow screens (`site.css`)."""
    return f"`{cell(name)}`{{.whole}}"


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = isinstance(value, bool | int | float | str)
    return f"`{value}`" if plain and value not in ("", False) else ""


def recipe_keys() -> str:
    """A table of every key of a recipe file, with its type and default, from the specs that check the file."""
    from meristem.recipes.specs import data_specs, race_spec, schema
    from meristem.recipes.specs import nodes as specs

    out = [
        "# Keys of a recipe",
        "",
        "Written from the specs that read the file. [Recipes](../recipes.md) explains them.",
        "",
    ]
    out += _keys("The file", schema.Recipe) + _keys("`race`", race_spec.RaceSpec) + _keys("A node", specs.NodeSpec)
    data = {"text": data_specs.TextSpec, "pairs of texts": data_specs.PairSpec, "images": data_specs.ImageSpec}
    data["a source among `sources`"] = data_specs.SourceSpec
    for what, spec in data.items():
        out += _keys(f"`data`: {what}", spec)
    kinds = _sections(specs.NodeSpec)
    for name, spec in kinds.items():
        out += _keys(f"`{name}`", spec)
    for name, spec in _sections(kinds["train"]).items():
        out += _keys(f"`train.{name}`", spec)
        for inner, part in _sections(spec).items():
            out += _keys(f"`train.{name}.{inner}`", part)
    return "\n".join([*out, *_methods()]) + "\n"


def _sections(spec: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys of a spec that hold keys of their own."""
    found = {}
    for name, field in spec.model_fields.items():
        inside = [field.annotation, *get_args(field.annotation)]
        models = [kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if models:
            found[field.alias or name] = models[0]
    return found


def _keys(title: str, spec: type[BaseModel]) -> list[str]:
    out = [
        f"## {title}",
        "",
        cell(spec.__doc__ or "").replace("\\|", "|"),
        "",
        "| key | type | default |",
        "|---|---|---|",
    ]
    for name, field in spec.model_fields.items():
        default = "required" if field.default is PydanticUndefined and not field.default_factory else field.default
        out.append(f"| `{field.alias or name}` | {cell(said(field.annotation))} | {cell(_shown(default))} |")
    more = spec.model_config.get("extra") == "allow"
    return [*out, "", *(["Further keys are options of what it names.", ""] if more else [])]


def _shown(default: Any) -> str:
    if default == "required":
        return default
    if isinstance(default, BaseModel):
        return "its own defaults"
    return "" if default is None or default is PydanticUndefined else f"`{default}`"


def _methods() -> list[str]:
    """The options of every growth method, as a `grow` node and `--option` take them."""
    from meristem.growth import METHODS

    out = [
        "## Options of the growth methods",
        "",
        "They are given next to `method` in a `grow` node, or as `--option NAME=VALUE`.",
        "",
    ]
    out += ["| method | option | type | default |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        for field in fields(method) if is_dataclass(method) else ():
            default = "required" if field.default is MISSING and field.default_factory is MISSING else field.default
            shown = "" if default is MISSING or default is None else f"`{default}`"
            out.append(f"| `{name}` | `{field.name}` | {cell(str(field.type))} | {cell(shown)} |")
    return out


def said(kind: Any) -> str:
    """A type in words a reader of YAML knows."""
    if kind is None or kind is type(None):
        return "nothing"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return said(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(said(each) for each in inner if each is not type(None)))
    if origin in (list, tuple, set):
        each = said(inner[0]) if inner else ""
        return f"list of {each}s" if each.endswith("number") else f"list of {each}".removesuffix(" of ")
    if origin is not None and inner:
        return f"mapping of {said(inner[0])} to {said(inner[-1])}" if len(inner) > 1 else str(origin.__name__)
    plain = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Any: "anything"}
    return plain.get(kind) or _named(kind)


def _named(kind: Any) -> str:
    name = getattr(kind, "__name__", str(kind))
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return name
    plain = {"TextSpec": "`data` (text)", "PairSpec": "`data` (pairs of texts)", "ImageSpec": "`data` (images)"}
    plain |= {
        "NodeSpec": "a node",
        "OnSpec": "`tune.on`",
        "SourceSpec": "a source",
        "ResourceSpec": "`resources`",
        "EarlyStopSpec": "`early_stop`",
    }
    return f"the keys of {plain.get(name) or '`' + name.removesuffix('Spec').lower() + '`'}"


def public_names() -> dict[str, list[str]]:
    """The full paths of all public names, by the package whose page shows them."""
    import meristem

    found: dict[str, list[str]] = {package: [] for package in PACKAGES}
    for name, home in meristem._HOMES.items():
        package = home.split(".")[1]
        found[SHARED_PAGE.get(package, package)].append(f"{home}.{name}")
    for package, paths in ALSO.items():
        found[package] += paths
    for package in ("checkpoints", "adaptive", "dynamics", "recipes"):
        module = importlib.import_module(f"meristem.{package}")
        known = {path.rsplit(".", 1)[1] for path in found[package]}
        found[package] += [f"meristem.{package}.{name}" for name in _offered(module) if name not in known]
    return found


def _offered(module: types.ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [name for name in names if not isinstance(getattr(module, name), types.ModuleType)]


def _is_options(path: str) -> bool:
    """Whether a name is a method or a schedule, of which a reader needs the options only."""
    from meristem.growth.methods.method import Method
    from meristem.subnetworks.schedule import Schedule

    home, name = path.rsplit(".", 1)
    found = getattr(importlib.import_module(home), name)
    return isinstance(found, type) and issubclass(found, (Method, Schedule)) and found is not Schedule


def api_pages() -> dict[str, str]:
    """One page of mkdocstrings directives for each package, by the name of the page."""
    pages = {}
    for package, paths in public_names().items():
        ordered = sorted(paths, key=lambda path: path.rsplit(".", 1)[1].lower())
        shown = [f"::: {path}\n" + ("    options: {members: false}\n" if _is_options(path) else "") for path in ordered]
        pages[f"{package}.md"] = f"# {PACKAGES[package]}\n\n" + "\n".join(shown)
    return pages
