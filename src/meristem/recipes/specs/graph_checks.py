"""Conditions between the nodes of a recipe. Each check raises ValueError with one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meristem.recipes.specs.nodes import NodeSpec
from meristem.recipes.specs.train_spec import TrainSpec

Nodes = Mapping[str, NodeSpec]


def check_budget(name: str, node: NodeSpec, nodes: Nodes, data: Any) -> None:
    """Check that a budget is not rounded to zero steps.

    Raises:
        ValueError: if it is less than half a step.
    """
    run = node.train or (nodes[node.decay.from_].train if node.decay else None)
    budget = node.train or node.decay
    if not run or not budget:
        return
    tried = (("tune: on: ", node.train.tune.on),) if node.train and node.train.tune else ()
    for place, own in (("", budget), *tried):
        unit, length = ("examples", 1) if own.examples else ("tokens", getattr(data, "sequence_length", 1))
        amount = own.examples or own.tokens
        if amount and amount < run.batch_size * length / 2:
            step = (
                f"{run.batch_size} sequences of {length} tokens" if unit == "tokens" else f"{run.batch_size} examples"
            )
            raise ValueError(f"node {name!r}: {place}{amount:,} {unit} are less than one step ({step})")


def check_parent(name: str, node: NodeSpec, parent: NodeSpec, nodes: Nodes, data: Any) -> None:
    """Check the conditions that a node has for one of its parents.

    Raises:
        ValueError: if one does not hold.
    """
    train = parent.train
    if node.assemble and not (train and train.incubate):
        raise ValueError(f"node {name!r} assembles {node.parents}, and one of them does not incubate a module")
    if node.assemble:
        modules = [nodes[other].train.incubate.module for other in node.parents if _incubates(nodes.get(other))]  # type: ignore[union-attr]
        twice = next((module for module in modules if modules.count(module) > 1), None)
        if twice is not None:
            raise ValueError(f"node {name!r} assembles {node.parents}, and two of them incubate module {twice}")
    if node.average and node.average.last:
        length = getattr(data, "sequence_length", 0)
        every = train.step_at(train.keep_every, length) if train and train.keep_every else 0
        kept = (train.steps(length) - 1) // every + 1 if train and every else 0
        if kept < node.average.last:
            raise ValueError(
                f"node {name!r} averages the last {node.average.last} checkpoints of {node.parents[0]!r}, which keeps {kept}; give that "
                "train node a smaller `keep_every`"
            )
    carries = (parent.grow or parent.fuse) and (parent.grow or parent.fuse).optimizer == "carry"  # type: ignore[union-attr]
    try:
        if node.train and carries:
            node.train.check_conflicts({"carry"})
            _check_optimizers(node.train, parent, nodes)
        if node.decay and train is None:
            raise ValueError(
                f"decays {node.decay.from_!r}, a node of kind {parent.kind}; a decay branches off a train node"
            )
        if node.decay and train:
            node.decay.check(train)
    except ValueError as error:
        raise ValueError(f"node {name!r} {error}") from error


def _incubates(node: NodeSpec | None) -> bool:
    return bool(node and node.train and node.train.incubate)


def check_provenance(name: str, train: TrainSpec, before: Iterable[NodeSpec], nodes: Nodes) -> None:
    """Check that there can be new entries to train. They are known for grown models, and possibly for a
    checkpoint.

    Raises:
        ValueError: if no node before this one grows, fuses or opens a model, or if the last that made one
            assembles it.
    """
    if train.train_only == "all" and not train.fresh:
        return
    origin = train.from_
    while origin and (own := nodes[origin].train or nodes[origin].decay) and not _incubates(nodes[origin]):
        origin = own.from_
    if origin and nodes[origin].assemble:
        raise ValueError(f"node {name!r}: train_only and fresh need a grown model, and {origin!r} assembles modules")
    if not any(node.grow or node.fuse or node.checkpoint for node in before):
        raise ValueError(f"node {name!r}: train_only and fresh need a grown model, and no node before it grows one")


def _check_optimizers(train: TrainSpec, grown: NodeSpec, nodes: Nodes) -> None:
    """Check that the parents used the optimizer that continues from their state.

    Raises:
        ValueError: if one did not.
    """
    for name in grown.parents:
        before = nodes[name]
        if before.train and before.train.optimizer != train.optimizer:
            raise ValueError(
                f"carries the state of {before.train.optimizer} ({name!r}) into {train.optimizer}; take the same `trainer: {{optim}}`, "
                "or `optimizer: reset`"
            )
