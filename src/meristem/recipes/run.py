"""Run a recipe: parents first, finished nodes never twice, killed ones from where they stood."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meristem.anatomy import Anatomy
from meristem.checkpoints import open_model
from meristem.data import Corpus, Sequences, open_corpus
from meristem.errors import MeristemError
from meristem.growth import LiGO, Method, grow_with_certificate
from meristem.growth.optimizer import amplitudes, grow_state
from meristem.incubation import Incubation, assemble, incubate
from meristem.recipes.node import NodeResult, load_result, node_hash
from meristem.recipes.schema import Recipe
from meristem.recipes.specs import AssembleSpec, FuseSpec, GrowSpec, TrainSpec

FIT_BATCH = 8  # sequences in each step of a method that learns its growth

Results = dict[int, dict[str, NodeResult]]  # seed -> node -> result


def run(recipe: Recipe, out: str | Path, callbacks: Sequence[Any] = ()) -> Results:
    """Run every node of `recipe` for every seed, under `out`.

    Each node is a directory `out/NAME-sSEED-HASH/` with `model/` and, when it has finished, `node.json`. The hash covers
    the node's options, its data and its parents: change a recipe and only what depends on the change runs again.

    Args:
        callbacks: further TrainerCallbacks for the train nodes.

    Raises:
        MeristemError: for bad input, at once where it can be known before training.
    """
    corpus = open_corpus(recipe.data.source, recipe.data.tokenizer, recipe.data.text_column)
    print(corpus.description, file=sys.stderr, flush=True)
    results: Results = {}
    for seed in recipe.seeds:
        done: dict[str, NodeResult] = {}
        for name in recipe.order():
            done[name] = _run_node(recipe, name, seed, done, corpus, Path(out), callbacks)
        results[seed] = done
    return results


def directory_of(out: Path, result: NodeResult) -> Path:
    return out / f"{result.name}-s{result.seed}-{result.hash[:8]}"


def _run_node(
    recipe: Recipe,
    name: str,
    seed: int,
    done: Mapping[str, NodeResult],
    corpus: Corpus,
    out: Path,
    callbacks: Sequence[Any],
) -> NodeResult:
    node = recipe.nodes[name]
    kind, spec = next((kind, spec) for kind, spec in node if spec is not None)
    parents = [done[parent] for parent in node.parents]
    data = {**recipe.data.model_dump(), "fingerprint": corpus.fingerprint} if node.train else {}
    identity = node_hash(kind, spec.model_dump(by_alias=True), seed, data, [p.hash for p in parents])
    directory = out / f"{name}-s{seed}-{identity[:8]}"
    finished = load_result(directory)
    if finished is not None:
        print(f"{name} (seed {seed}): done before", file=sys.stderr, flush=True)
        return finished
    directory.mkdir(parents=True, exist_ok=True)
    parent_directory = directory_of(out, parents[0]) if parents else None
    if isinstance(spec, TrainSpec):
        outcome = _train(recipe, spec, name, seed, done, corpus, directory, parent_directory, callbacks)
    elif isinstance(spec, AssembleSpec):
        outcome = _assemble([directory_of(out, parent) for parent in parents], parents, directory)
    elif isinstance(spec, FuseSpec):
        outcome = _fuse(spec, seed, [directory_of(out, parent) for parent in parents], directory)
    else:
        assert parent_directory is not None
        outcome = _grow(recipe, spec, seed, corpus, parent_directory, directory)
    result = NodeResult(
        name=name,
        kind=kind,
        seed=seed,
        hash=identity,
        parents=[f"{p.name}-s{p.seed}-{p.hash[:8]}" for p in parents],
        **outcome,
    )
    result.save(directory)
    return result


def _train(
    recipe: Recipe,
    spec: TrainSpec,
    name: str,
    seed: int,
    done: Mapping[str, NodeResult],
    corpus: Corpus,
    directory: Path,
    parent: Path | None,
    callbacks: Sequence[Any],
) -> dict[str, Any]:
    from meristem.recipes.train import load_state, new_model, train

    shutil.rmtree(directory / "model", ignore_errors=True)  # of a run that was killed while leaving it
    state, factors = None, None
    if parent is None:
        assert spec.model is not None
        model = new_model(spec.model, corpus.vocab_size, recipe.data.sequence_length, seed + spec.seed)
    else:
        model = open_model(str(parent / "model"))
        file = parent / "optimizer.safetensors"
        state = load_state(file) if file.exists() else None
        grown = load_result(parent)
        factors = grown.details.get("amplitudes") if grown else None
    incubation = None
    if spec.incubate:
        incubation = incubate(
            model, spec.incubate.division, spec.incubate.module, start=spec.incubate.start, seed=seed + spec.seed
        )
        model, state, factors = incubation.model, None, None  # the state is the meta network's
    read = sum(done[a].tokens for a in recipe.ancestors(name) if a != name) // recipe.data.sequence_length
    outcome = train(
        model,
        spec,
        recipe.data,
        corpus,
        directory,
        label=f"{name} (seed {seed})",
        seed=seed + spec.seed,
        sequences_read=read,
        optimizer_state=state,
        amplitudes=factors,
        callbacks=callbacks,
    )
    details = {} if incubation is None else {"details": {"incubation": incubation.record()}}
    return {**outcome, **details, "parameters": sum(p.numel() for p in model.parameters())}


def _grow(recipe: Recipe, spec: GrowSpec, seed: int, corpus: Corpus, parent: Path, directory: Path) -> dict[str, Any]:
    from meristem.checkpoints.record import growth_record
    from meristem.checkpoints.write import write_model
    from meristem.recipes.train import save_state

    began = time.perf_counter()
    source = str(parent / "model")
    small = open_model(source)
    methods, flops = _fitted(recipe, spec, seed, corpus, small)
    growth = grow_with_certificate(small, methods)
    record = growth_record(growth, source)
    write_model(growth.model, directory / "model", record, tokenizer_from=Path(source), overwrite=True)
    if spec.optimizer == "carry":
        state = _state_to_carry(parent)
        for plan in growth.plans:
            state = grow_state(plan, state)
        save_state(state, directory / "optimizer.safetensors")
    return {
        "flops": flops,
        "seconds": time.perf_counter() - began,
        "tokens": 0,
        "metrics": {},
        "parameters": sum(p.numel() for p in growth.model.parameters()),
        "details": {
            "certificate": record["certificate"],
            "amplitudes": {n: list(ab) for n, ab in amplitudes(growth.plans).items()},
        },
    }


def _fuse(spec: FuseSpec, seed: int, parents: list[Path], directory: Path) -> dict[str, Any]:
    from meristem.checkpoints.record import fusion_record
    from meristem.checkpoints.write import write_model
    from meristem.growth.fuse import fuse_state, fuse_with_certificate
    from meristem.recipes.train import save_state

    began = time.perf_counter()
    sources = [str(parent / "model") for parent in parents]
    opened = {source: open_model(source) for source in dict.fromkeys(sources)}
    fusion = fuse_with_certificate([opened[source] for source in sources], spec.method(seed))
    record = fusion_record(fusion, sources)
    write_model(fusion.model, directory / "model", record, tokenizer_from=Path(sources[0]), overwrite=True)
    if spec.optimizer == "carry":
        state = fuse_state(fusion, [_state_to_carry(parent) for parent in parents])
        save_state(state, directory / "optimizer.safetensors")
    return {
        "flops": 0,
        "seconds": time.perf_counter() - began,
        "tokens": 0,
        "metrics": {},
        "parameters": sum(p.numel() for p in fusion.model.parameters()),
        "details": {"certificate": record["certificate"], "exact": fusion.exact},
    }


def _assemble(parents: list[Path], results: list[NodeResult], directory: Path) -> dict[str, Any]:
    from meristem.checkpoints.record import assembly_record
    from meristem.checkpoints.write import write_model

    began = time.perf_counter()
    sources = [str(parent / "model") for parent in parents]
    incubations = [
        Incubation.of_record(open_model(source), result.details["incubation"])
        for source, result in zip(sources, results, strict=True)
    ]
    model = assemble(incubations)
    write_model(model, directory / "model", assembly_record(incubations, sources), Path(sources[0]), overwrite=True)
    return {
        "flops": 0,
        "seconds": time.perf_counter() - began,
        "tokens": 0,
        "metrics": {},
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _state_to_carry(parent: Path) -> Any:
    from meristem.recipes.train import load_state

    file = parent / "optimizer.safetensors"
    if not file.exists():
        raise MeristemError(
            f"{parent.name} has no optimizer state to carry (its node trained several kernels); use optimizer: reset"
        )
    return load_state(file)


def _fitted(recipe: Recipe, spec: GrowSpec, seed: int, corpus: Corpus, small: Any) -> tuple[list[Method], int]:
    """The node's methods, those that learn their growth fitted on the recipe's data, and the FLOPs of the fit."""
    from torch.utils.data import DataLoader

    from meristem.recipes.flops import training_flops

    methods, flops = spec.build_methods(), 0
    for position, method in enumerate(methods):
        if not isinstance(method, LiGO):
            continue
        if position:
            raise MeristemError("ligo learns width and depth together; it comes first in a list of methods")
        windows = Sequences(corpus.train, recipe.data.sequence_length, method.steps * FIT_BATCH, seed)
        methods[position] = method.fit(small, DataLoader(windows, batch_size=FIT_BATCH))
        plan = methods[position].plan(Anatomy.of(small), small)
        target = plan.target.build(plan.target.sizes, plan.target.depths)
        flops = len(windows) * training_flops(target, recipe.data.sequence_length, corpus.vocab_size)
    return methods, flops
