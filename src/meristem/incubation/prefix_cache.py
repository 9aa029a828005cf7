"""Run the frozen blocks before a module once for each example, and cache their result.

If examples come again unchanged (several epochs, no augmentation), the result of the prefix is always the
same. Examples are recognised by their contents, so any loop, loader and order works.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meristem.errors import MeristemError
from meristem.incubation.hybrid import Incubation
from meristem.subnetworks.blocks import Blocks, lists_of_blocks
from meristem.subnetworks.gate import along
from meristem.subnetworks.path import Path

GIBIBYTE = 2**30


@contextlib.contextmanager
def cached_prefix(incubation: Incubation, max_bytes: int = 4 * GIBIBYTE) -> Iterator[PrefixCache]:
    """A context in which the hybrid, in training mode, runs the blocks before its module once for each
    example.

        with ms.cached_prefix(incubation):
            for batch in loader:
                incubation.model(**batch).loss.backward()
                ...

    Evaluation runs the whole network. Results equal those without the cache, bit for bit. The first module
    has no blocks before it and gains nothing.

    Args:
        incubation: the result of `ms.incubate`.
        max_bytes: the largest size of the cache in main memory, in bytes. Each example takes (sequence x
            hidden) numbers.

    Yields:
        The cache.

    Raises:
        MeristemError: if the network has several lists of blocks, or if blocks pass something on to later
            ones (a position bias). At the first step, if the prefix is random in training (dropout). When the
            cache is full; the message says how much was asked for.
    """
    model, module = incubation.model, incubation.module
    lists = lists_of_blocks(model, incubation.anatomy)
    if len(lists) != 1:
        raise MeristemError(
            f"the prefix can be cached only if there is one list of blocks; this network has {len(lists)}"
        )
    (blocks,), first = lists, incubation.division.in_hybrid(module).start
    handed_on = sorted(layer for layer in blocks.needed if layer < first)
    if handed_on:
        raise MeristemError(f"blocks {handed_on} of {blocks.name} pass something to later ones, so they have to run")
    cache = PrefixCache(model, blocks, first, max_bytes)
    original = type(model)
    model.__class__ = _cached_class(original, cache) if first else original
    try:
        yield cache
    finally:
        model.__class__ = original


class PrefixCache:
    """The result of the prefix for each example: CPU tensors by a digest of the example."""

    def __init__(self, model: nn.Module, blocks: Blocks, first: int, max_bytes: int) -> None:
        self.model, self.blocks, self.first, self.max_bytes = model, blocks, first, max_bytes
        self.known: dict[bytes, Tensor] = {}
        self.bytes = self.hits = self.misses = 0
        layers = len(blocks.modules)
        self._path = Path(tuple(layer >= first for layer in range(layers)), (1.0,) * layers)

    def run(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the hybrid. If all examples of the batch are known, the result of the prefix
        comes from the cache.
        """
        keys = _digests({**{str(i): value for i, value in enumerate(args)}, **kwargs})
        module = self.blocks.modules[self.first]
        if all(key in self.known for key in keys):
            self.hits += 1
            device = next(module.parameters()).device
            hidden = torch.stack([self.known[key] for key in keys]).to(device)
            hook = module.register_forward_pre_hook(lambda _, a, k: _with_hidden(a, k, hidden), with_kwargs=True)
            with along(self.model, {self.blocks.name: self._path}):
                return self._hooked(hook, forward, args, kwargs)
        if not self.misses:
            self._check_deterministic(forward, args, kwargs)
        self.misses += 1
        hook = module.register_forward_pre_hook(lambda _, a, k: self._keep(keys, _hidden(a, k)), with_kwargs=True)
        return self._hooked(hook, forward, args, kwargs)

    def _hooked(self, hook: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        finally:
            hook.remove()

    def _keep(self, keys: list[bytes], hidden: Tensor) -> None:
        for key, row in zip(keys, hidden.detach().cpu(), strict=True):
            if key not in self.known:
                self.known[key] = row.clone()
                self.bytes += row.nbytes
        if self.bytes > self.max_bytes:
            raise MeristemError(
                f"the cached prefix of {len(self.known)} examples takes {self.bytes:,} bytes, and max_bytes is {self.max_bytes:,}; "
                "allow more, or incubate without the cache"
            )

    def _check_deterministic(self, forward: Any, args: Any, kwargs: Any) -> None:
        """Two runs up to the module have to agree."""
        seen: list[Tensor] = []

        def stop(_: nn.Module, a: tuple[Any, ...], k: dict[str, Any]) -> None:
            seen.append(_hidden(a, k))
            raise _Reached

        for _ in range(2):
            hook = self.blocks.modules[self.first].register_forward_pre_hook(stop, with_kwargs=True)
            with torch.random.fork_rng(), torch.no_grad(), contextlib.suppress(_Reached):
                torch.manual_seed(len(seen))
                self._hooked(hook, forward, args, kwargs)
        if not torch.equal(*seen):
            raise MeristemError("the blocks before the module are random in training (dropout?); set their rates to 0")


class _Reached(Exception):
    """Signals that the first block of the module is reached."""


def _cached_class(original: type[nn.Module], cache: PrefixCache) -> type[nn.Module]:
    """A subclass whose calls in training mode use the cache. It has the name of the original, because some
    models check that.
    """

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def forward(*a: Any, **k: Any) -> Any:
            return original.__call__(self, *a, **k)

        return cache.run(forward, *args, **kwargs) if self.training else forward(*args, **kwargs)

    return type(original.__name__, (original,), {"__call__": call, "__module__": original.__module__})


def _digests(inputs: Mapping[str, Any]) -> list[bytes]:
    """A fingerprint of the inputs of each example, without labels."""
    tensors = {n: t.detach().cpu() for n, t in inputs.items() if isinstance(t, Tensor) and n != "labels" and t.dim()}
    rows = len(next(iter(tensors.values())))
    found = [hashlib.blake2b(digest_size=16) for _ in range(rows)]
    for name, tensor in sorted(tensors.items()):
        for digest, row in zip(found, tensor, strict=True):
            digest.update(name.encode() + row.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return [digest.digest() for digest in found]


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
