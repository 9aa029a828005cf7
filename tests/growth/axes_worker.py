"""One process of test_pairs.py: sharded networks and their optimizers grown along each axis, against the same unsharded."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
from processes import leave
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import meristem as ms
from meristem.growth.optimizers.optimizer import named_state
from meristem.growth.tensors.dtensors import whole

GROWTHS = {
    "stream scaled": ("llama", {}, ms.LEMON(hidden_size=48)),
    "head_dim": ("qwen3", {}, ms.LEMON(head_dim=16)),
    "regrouped": ("llama", {}, ms.LEMON(num_attention_heads=8, num_key_value_heads=8)),
    "vocabulary": ("llama", {"tie_word_embeddings": True}, ms.LEMON(vocab_size=81)),
    "positions": ("gpt2", {}, ms.LEMON(max_position_embeddings=96)),
    "all at once": ("qwen3", {}, ms.LEMON(hidden_size=80, head_dim=16, intermediate_size=66, vocab_size=81, num_hidden_layers=3)),
}  # fmt: skip


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """On the same tokens in all processes, so that sharding changes nothing."""
    tokens = torch.randint(3, 67, (2, 12), generator=torch.Generator().manual_seed(seed))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(family: str, changes: dict, shard) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = pico.build(family, **changes)
    shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(2):
        step(model, optimizer, seed)
    return model, optimizer


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference between what all processes hold of a network and the whole one."""
    assert set(ours) == set(theirs)
    return max(float((whole(tensor) - theirs[name]).abs().max()) for name, tensor in ours.items())


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def shard(network: torch.nn.Module) -> None:
        for block in network.transformer.h if hasattr(network, "transformer") else network.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    found = []
    for family, changes, method in GROWTHS.values():
        alone, its_optimizer = trained(family, changes, lambda _: None)
        growth = ms.Growth.of(alone, method)
        expected = growth.grow_optimizer(its_optimizer)
        model, optimizer = trained(family, changes, shard)
        big, grown = ms.grow_sharded(model, method, shard, optimizer)
        weights = apart(big.state_dict(), growth.model.state_dict())
        moments = [
            {f"{name} {key}": value for name, entries in named_state(o, m).items() for key, value in entries.items()}
            for o, m in ((grown, big), (expected, growth.model))
        ]
        state = apart(*moments)
        for network, its in ((growth.model, expected), (big, grown)):
            step(network, its, 5)
        found += [weights, state, apart(big.state_dict(), growth.model.state_dict())]
    leave([f"{number:.3e}" for number in found], folder)


if __name__ == "__main__":
    main(Path(sys.argv[2]))
