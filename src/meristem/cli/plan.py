"""`meristem plan`: the cost of a growth route, before it runs."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any, Optional

import typer

from meristem.cli.options import check_methods, complete_method, like_target, method_options, named_methods
from meristem.cli.output import Answer, calm_libraries
from meristem.cli.parameters import (
    Depth,
    Drop,
    ExpertsPerToken,
    Inputs,
    LikeTarget,
    NumExperts,
    Source,
    Trust,
    Width,
)
from meristem.cli.progress import step
from meristem.errors import MeristemError


def plan(
    context: typer.Context,
    source: Source,
    tokens: Annotated[
        str,
        typer.Option(
            help="The budget of training the target from scratch, such as 10M: tokens, or examples if there are no tokens."
        ),
    ],
    width: Width = None,
    depth: Depth = None,
    method: Annotated[
        Optional[str],
        typer.Option(
            help="The growth methods, comma-separated. Default: one that suits the target.",
            autocompletion=complete_method,
        ),
    ] = None,
    like: LikeTarget = None,
    num_experts: NumExperts = None,
    experts_per_token: ExpertsPerToken = None,
    small_tokens: Annotated[
        Optional[str], typer.Option(help="Tokens of the small network before growing. Default: by G_stack's law.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(help="The sequence length for counting attention.")] = 256,
    inputs: Inputs = None,
    drop: Drop = None,
    trust_remote_code: Trust = False,
) -> Answer:
    """Plan a growth before it runs: method, moment, learning rate, costs, measurements, warnings."""
    calm_libraries()
    from meristem.checkpoints.source import find_source

    options = method_options(context)
    check_methods(method)
    budget, before = _count("--tokens", tokens), _count("--small-tokens", small_tokens) if small_tokens else None
    if sequence_length < 1:
        raise MeristemError(f"--sequence-length must be at least 1, got {sequence_length}")
    with step("planning"):
        found = find_source(source, trust_remote_code)

        from meristem.anatomy import Anatomy
        from meristem.checkpoints import open_streamed
        from meristem.cli.inputs import inputs_for
        from meristem.recipes.advice import advise, suggested
        from meristem.recipes.costs import (
            changed_sizes,
            network_cost,
            on_meta,
            planned_builder,
            planning_inputs,
            routes,
        )

        method, why = suggested(options) if method is None and not like else (method, "")
        model = open_streamed(found, trust_remote_code, drop or [])
        aimed = like_target(model, method, options, (like, False)) if like else None
        chosen = list(aimed.methods) if aimed else named_methods(method, options)
        anatomy = Anatomy.of(model)
        builders = [anatomy.builder, planned_builder(model, chosen, anatomy)]
        given = inputs_for(inputs, found, model) or planning_inputs(model, sequence_length)
        small, large = (network_cost(on_meta(builder), given) for builder in builders)
    unit = "tokens" if "input_ids" in given else "examples"
    costs = routes(small, large, budget, before, unit)
    sizes, parameters = changed_sizes(*builders), (small.parameters, large.parameters)
    advice = advise(chosen, why, sizes, parameters, budget, costs, unit, before is not None)
    _print_costs(small, large, costs, unit)
    _print_advice(advice)
    told = {"source": source, "unit": unit, "small": small, "large": large, "sizes": sizes, "routes": costs}
    return Answer({**told, "advice": advice})


def _count(flag: str, text: str) -> int:
    """The number in the text of a user.

    Raises:
        MeristemError: if there is none.
    """
    from meristem.recipes.specs.data_specs import parse_count

    try:
        count = parse_count(text)
    except (ValueError, OverflowError) as error:
        raise MeristemError(f"{flag} takes a count such as 10M, got {text!r}") from error
    if not isinstance(count, int) or count < 1:
        raise MeristemError(f"{flag} takes a count such as 10M, got {text!r}")
    return count


def _print_advice(advice: Any) -> None:
    rows = (
        ("method", f"{advice.method}: {advice.why}"),
        ("when to grow", advice.when),
        ("learning rate", f"{advice.rate} (a search's starting points, not results)"),
        ("warm-up", advice.warmup),
        *(("measured", line) for text in advice.evidence for line in text.splitlines()),
        *(("warning", warning) for warning in advice.warnings),
    )
    for heading, text in rows:
        print(textwrap.fill(f"{heading}: {text}", 80, subsequent_indent="  ", break_on_hyphens=False))


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _print_costs(small: Any, large: Any, found: list[Any], unit: str) -> None:
    from rich.console import Console
    from rich.table import Table

    networks = Table("network", "parameters", f"FLOPs per {unit[:-1]}", "training memory", title="networks")
    for name, cost in (("small", small), ("large", large)):
        networks.add_row(name, f"{cost.parameters:,}", f"{cost.flops_per_token:.3e}", _memory(cost.training_bytes))
    table = Table("route", f"{unit} small", f"{unit} large", "FLOPs", "of scratch", title="routes")
    for route in found:
        share = f"{route.flops / found[0].flops:.0%}"
        table.add_row(
            route.name, f"{route.small_tokens:,.0f}", f"{route.large_tokens:,.0f}", f"{route.flops:.3e}", share
        )
    Console().print(networks, table)
