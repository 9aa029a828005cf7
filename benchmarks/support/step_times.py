"""Milliseconds of one training step on a device, in bfloat16, with blocks compiled or not: the sides of `gpu.py`.

    python benchmarks/support/step_times.py cuda [--tiny]

Prints a line of JSON after each measurement, the last with all: {side: {"milliseconds": ..., "of_full": ..., "peak_gigabytes": ...}}.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

WARM_UP, STEPS = 3, 12


@dataclass(frozen=True)
class Setting:
    """A Llama and its batches."""

    hidden_size: int = 1024
    layers: int = 16
    batch: int = 8
    length: int = 1024
    vocabulary: int = 32000

    def model(self, device: torch.device) -> nn.Module:
        """Made on the device: random numbers for a third of a billion weights take ten seconds of one core."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        heads = max(2, self.hidden_size // 64)
        with device:
            return LlamaForCausalLM(LlamaConfig(
                hidden_size=self.hidden_size, intermediate_size=self.hidden_size * 11 // 4, num_hidden_layers=self.layers,
                num_attention_heads=heads, num_key_value_heads=heads // 2, vocab_size=self.vocabulary, use_cache=False,
            ))  # fmt: skip


TINY = Setting(hidden_size=32, layers=4, batch=2, length=16, vocabulary=64)
Around = Callable[[nn.Module, int], AbstractContextManager[Any]]  # (model, step): what a step runs in


def full(_: nn.Module, __: int) -> AbstractContextManager[Any]:
    return nullcontext()


def half_the_blocks(model: nn.Module, step: int) -> AbstractContextManager[Any]:
    import meristem as ms

    layers = model.config.num_hidden_layers  # type: ignore[union-attr]
    return ms.subnetwork(model, ms.SubnetworkSchedule(layers, 10_000, stages=[layers / 2]), step)


def half_the_width(model: nn.Module, step: int) -> AbstractContextManager[Any]:
    import meristem as ms

    layers = model.config.num_hidden_layers  # type: ignore[union-attr]
    return ms.subnetwork(model, ms.SubnetworkSchedule(layers, 10_000, stages=[layers], widths=[0.5]), step)


@contextmanager
def mixed(model: nn.Module, step: int) -> Iterator[None]:
    import meristem as ms

    ms.mix_kernels(model, step)
    yield


def milliseconds(model: nn.Module, around: Around, setting: Setting, device: torch.device) -> dict[str, float]:
    """The median of `STEPS` steps: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, setting.vocabulary, (setting.batch, setting.length), device=device)
    cuda, taken = device.type == "cuda", []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in range(WARM_UP + STEPS):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with around(model, step), torch.autocast(device.type, torch.bfloat16):
            model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return {"milliseconds": round(statistics.median(taken[WARM_UP:]), 2), "peak_gigabytes": round(peak, 2)}


def plain(setting: Setting, device: torch.device, compiled: bool) -> nn.Module:
    return _compiled(setting.model(device).train(), compiled)


def with_kernels(setting: Setting, device: torch.device, compiled: bool) -> nn.Module:
    import meristem as ms

    return _compiled(ms.majority(setting.model(device), kernels=3).to(device).train(), compiled)


def sharded(setting: Setting, device: torch.device, compiled: bool) -> nn.Module:
    """FSDP2 with one process."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": os.environ.get("MASTER_PORT", "29533")}
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    mesh = dist.init_device_mesh(device.type, (1,))
    model = plain(setting, device, compiled)
    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _compiled(model: nn.Module, compiled: bool) -> nn.Module:
    for block in model.model.layers if compiled else ():  # type: ignore[union-attr]
        block.compile()
    return model


SIDES: dict[str, tuple[Callable[[Setting, torch.device, bool], nn.Module], Around]] = {
    "full": (plain, full),
    "RAPTR, half the blocks": (plain, half_the_blocks),
    "RAPTR, half the width": (plain, half_the_width),
    "Majority Kernels, three": (with_kernels, mixed),
    "FSDP2, one process": (sharded, full),
    "FSDP2, one process, half the blocks": (sharded, half_the_blocks),
}


def measure(setting: Setting, device: torch.device, compiled: bool) -> Iterator[dict[str, Any]]:
    """Every side by itself, beside the full network of the same run: all that is found so far, after each. A side that fails says why and
    ends nothing."""
    found: dict[str, Any] = {}
    for name, (make, around) in SIDES.items():
        try:
            found[name] = milliseconds(make(setting, device, compiled), around, setting, device)
            found[name]["of_full"] = round(found[name]["milliseconds"] / found["full"]["milliseconds"], 3)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield found


def growth(setting: Setting, device: torch.device) -> Iterator[dict[str, Any]]:
    """Seconds of growing and of proving on the device, and what the certificate says, after each."""
    import meristem as ms

    model = replace(setting, layers=max(2, setting.layers // 2)).model(device).to(torch.bfloat16).eval()
    found = {}
    for name, options in (("grown", {"verify": False}), ("grown and proved", {}), ("sampled proof", {"sample": 2})):
        start = time.perf_counter()
        done = ms.Growth.of(model, ms.HyperCloning(width=2, noise=0.1), **options)
        if device.type == "cuda":
            torch.cuda.synchronize()
        found[name] = {"seconds": round(time.perf_counter() - start, 2)}
        if done.certificate is not None:
            found[name] |= {"holds": done.certificate.holds, "device": done.certificate.device}
        yield found


def main() -> None:
    device, setting = torch.device(sys.argv[1]), TINY if "--tiny" in sys.argv else Setting()
    parts = {"growth": growth(setting, device), "steps": measure(setting, device, compiled=False)}
    if setting is not TINY:
        parts["steps, blocks compiled"] = measure(setting, device, compiled=True)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        for found[name] in part:
            print(json.dumps(found), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
