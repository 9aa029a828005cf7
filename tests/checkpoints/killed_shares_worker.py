"""Grows a checkpoint with four processes, which are killed at random moments, thirty times, and the one that started them now and
then; says what was seen."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from forks import forked
from transformers import LlamaConfig, LlamaForCausalLM

import meristem as ms
from meristem.checkpoints import open_streamed, write_model
from meristem.checkpoints.shares import Processes


def grow(source: Path, out: Path, processes) -> int:
    def work() -> None:
        growth = ms.Growth.of(open_streamed(str(source)), ms.HyperCloning(width=2, noise=0.1), verify=False)
        write_model(growth.model, out, {}, max_shard_size="1MB", sources=[source], processes=processes)

    return forked(work)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def whole(folder: Path) -> dict[str, int]:
    found = {}
    for shared in folder.glob(".out.shares-*"):
        try:
            found |= {f.name: f.stat().st_ino for f in shared.glob("model*.safetensors")}
        except OSError:
            continue
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.iterdir() if ".safetensors" in f.name}


def main(folder: Path) -> None:
    source, out = folder / "small", folder / "out"
    config = LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=6, num_attention_heads=4, vocab_size=2000
    )
    os.waitpid(forked(lambda: LlamaForCausalLM(config).save_pretrained(source)), 0)
    os.waitpid(grow(source, folder / "one", None), 0)
    rng, kills, statuses, rewritten = random.Random(0), 0, [], []
    identical, parents = True, 0
    while kills < 30:
        for file in out.iterdir() if out.exists() else ():
            file.unlink()
        if out.exists():
            out.rmdir()
        pid, seen = grow(source, out, Processes(4)), {}
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses.append(status)
                break
            now = whole(folder)
            rewritten += [name for name in now if name in seen and now[name] != seen[name]]
            seen |= now
            running = children(pid)
            if running and rng.random() < 0.5 and kills < 30:
                os.kill(rng.choice(running), signal.SIGKILL)
                kills += 1
                if kills % 10 == 0 and seen:  # the one that started them, too: a new one goes on with what is there
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    parents += 1
                    pid = grow(source, out, Processes(4))
            time.sleep(rng.uniform(0, 0.05))
        identical &= contents(out) == contents(folder / "one")
    left = sorted(p.name for p in folder.iterdir())
    print(json.dumps({
        "kills": kills, "parents": parents, "statuses": statuses, "identical": identical, "rewritten": rewritten, "left": left,
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
