"""Grows a checkpoint in a child that is killed at a random moment, thirty times; says what was seen of OUT each time."""

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
from meristem.growth import Growth


def child(source: str, out: Path) -> int:
    """A fork that grows."""

    def work() -> None:
        growth = Growth.of(open_streamed(source), ms.HyperCloning(width=2), verify=False)
        write_model(growth.model, out, {}, overwrite=True)

    return forked(work)


def main(folder: Path) -> None:
    source, out = str(folder / "small"), folder / "out"
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=8, vocab_size=4000
    )
    os.waitpid(forked(lambda: LlamaForCausalLM(config).save_pretrained(source)), 0)
    start = time.perf_counter()
    os.waitpid(child(source, out), 0)
    whole = time.perf_counter() - start
    size = sum(file.stat().st_size for file in out.iterdir())
    rng, seen = random.Random(0), []
    for number in range(30):
        if number % 2 == 0:  # half of the time there is nothing to replace
            for file in out.iterdir() if out.exists() else ():
                file.unlink()
            if out.exists():
                out.rmdir()
        pid = child(source, out)
        time.sleep(rng.uniform(0.05, 1.1) * whole)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = sum(file.stat().st_size for file in out.iterdir()) if out.exists() else 0
        _, status = os.waitpid(child(source, out), 0)  # the rerun
        rerun = sum(file.stat().st_size for file in out.iterdir()) if out.exists() else 0
        seen.append(
            {"found": found, "rerun": rerun, "status": status, "left": sorted(p.name for p in folder.iterdir())}
        )
    print(json.dumps({"size": size, "seen": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
