"""`meristem fuse`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from meristem.cli.output import Answer, calm_libraries, note, parents_and_out
from meristem.cli.parameters import (
    Drop,
    ExpertsPerToken,
    Inputs,
    Overwrite,
    Prove,
    PushRevision,
    PushTo,
    ShardSize,
    Trust,
)
from meristem.cli.places import at_place
from meristem.cli.progress import step
from meristem.cli.pushing import check_push, push
from meristem.cli.writing import write
from meristem.errors import MeristemError

if TYPE_CHECKING:
    from meristem.growth.methods.deep_fusion import DeepFusion


def fuse(
    sources: Annotated[
        list[str], typer.Argument(metavar="A B ... OUT", help="Two or more models, then the directory to write.")
    ],
    weights: Annotated[Optional[str], typer.Option(help="Each parent's share of the logits, such as 0.7,0.3.")] = None,
    norm: Annotated[str, typer.Option(help="plain (as published), equalised or grouped.")] = "plain",
    noise: Annotated[Optional[float], typer.Option(help="Symmetry-breaking noise of a self-fusion (relative).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    inputs: Inputs = None,
    verify: Prove = True,
    allow_differences: Annotated[
        bool,
        typer.Option(
            "--allow-differences",
            help="Fuse parents that compute differently; the result computes as the first one does.",
        ),
    ] = False,
    experts: Annotated[
        bool,
        typer.Option("--experts", help="The parents' feed-forward blocks become experts; everything else is averaged."),
    ] = False,
    experts_per_token: ExpertsPerToken = None,
    max_shard_size: ShardSize = "5GB",
    drop: Drop = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    push_to_hub: PushTo = None,
    revision: PushRevision = None,
) -> Answer:
    """Fuse several models of one type into one that is as wide as all of them together (Deep Fusion)."""
    parents, out = parents_and_out("fuse", sources, "models")
    try:
        shares = [float(share) for share in weights.split(",")] if weights else None
    except ValueError as error:
        raise MeristemError(f"--weights takes numbers such as 0.7,0.3, got {weights!r}") from error
    where = (push_to_hub, revision)
    check_push(where)
    calm_libraries()

    def method() -> DeepFusion:
        from meristem.growth.methods.deep_fusion import DeepFusion

        experts_each = (experts, experts_per_token or 2)
        made = DeepFusion(shares, norm, noise, seed, allow_differences, *experts_each)  # type: ignore[arg-type]
        made.convex(len(parents))
        return made

    def fused(place: Path) -> Answer:
        flags = (verify, max_shard_size, drop or [], overwrite, trust_remote_code, inputs)
        return Answer({**fuse_checkpoints(parents, place, method, *flags), "pushed": push(place, where)})

    return at_place(out, fused, overwrite)


def fuse_checkpoints(
    sources: Sequence[str],
    out: Path,
    make_method: Callable[[], DeepFusion],
    prove: bool = True,
    max_shard_size: str = "5GB",
    drop: Sequence[str] = (),
    overwrite: bool = False,
    trust: bool = False,
    inputs: str | None = None,
) -> dict[str, Any]:
    """Open, fuse, measure and write. Returns what was made, and prints it."""
    from meristem.checkpoints.directory import check_place, check_shard_size
    from meristem.checkpoints.source import find_source

    check_place(out, overwrite, sources)
    check_shard_size(max_shard_size)
    with step("planning and measuring" if prove else "planning"):
        found = {source: find_source(source, trust) for source in dict.fromkeys(sources)}

        from meristem.checkpoints import open_streamed
        from meristem.checkpoints.record import fusion_record
        from meristem.checkpoints.unplaced import check_drop
        from meristem.checkpoints.vocabularies import check_same_tokens
        from meristem.cli.inputs import inputs_for
        from meristem.growth.fuse import fuse_with_certificate

        method = make_method()
        if not method.allow_differences:
            check_same_tokens(list(found.values()), "fused")
        opened = {name: open_streamed(source, trust, drop) for name, source in found.items()}
        check_drop(drop, [(found[name], model) for name, model in opened.items()])
        given = inputs_for(inputs, found[sources[0]], opened[sources[0]])
        fusion = fuse_with_certificate([opened[source] for source in sources], method, verify=prove, inputs=given)
    with ThreadPoolExecutor(1) as beside:  # the sources are hashed while they are read anyway
        parents = [found[source] for source in sources]
        record = beside.submit(fusion_record, fusion, parents, drop)
        write(fusion.model, out, record.result, parents, overwrite, max_shard_size, trust)
    before = [sum(p.numel() for p in model.parameters()) for model in opened.values()]
    after = sum(p.numel() for p in fusion.model.parameters())
    note(f"{out}: {' + '.join(f'{n:,}' for n in before)} -> {after:,} parameters")
    certificate = fusion.certificate
    if certificate is not None:
        gap = "a router weighs them, the rest is averaged" if method.experts else "their norms see all units together"
        kept = "the parents' mean, proved" if fusion.exact else f"gap to the parents' mean ({gap})"
        note(f"{kept}: {certificate.summary()}")
    told = certificate.as_dict() if certificate is not None else None
    parameters = {"before": before, "after": after}
    return {"out": out, "parameters": parameters, "methods": fusion.methods, "exact": fusion.exact, "certificate": told}
