"""A recipe, killed at its file operations, one run for each: `python killed_anywhere_worker.py RECIPE FOLDER FIRST STEP`.

Prints JSON: the operations of an undisturbed run, and for each at which it was killed the exit codes and the files that then differ.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch  # noqa: F401 what is imported here, a fork need not import
import transformers  # noqa: F401

import meristem.recipes.training.train  # noqa: F401
from meristem.cli.main import main

WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.replace", "shutil.rmtree")


def child(recipe, out, at, log):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    seen = []

    def hook(event, args):
        writes = event in WRITES or (event == "open" and isinstance(args[1], str) and args[1][:1] in "wax")
        if not writes or not any(isinstance(a, (str, os.PathLike)) and str(out) in str(a) for a in args):
            return
        seen.append(f"{event} {str(args[0]).removeprefix(str(out))}")
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.argv = ["meristem", "run", str(recipe), "--out", str(out)]
    try:
        main()
    finally:
        out.with_suffix(".seen").write_text(json.dumps(seen))


def start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=child, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def left(out):
    kept = (file for file in sorted(out.rglob("*.safetensors")) if "trainer" not in file.parts)
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in kept}


recipe, folder = map(Path, sys.argv[1:3])
first, step = map(int, sys.argv[3:])
whole = folder / "whole"
assert start(recipe, whole, None, folder / "log") == 0, (folder / "log").read_text()
expected, found = left(whole), []
operations = json.loads(whole.with_suffix(".seen").read_text())
for at in range(first, len(operations) + 1, step):
    out = folder / f"at{at}"
    codes = [start(recipe, out, at, folder / "log"), start(recipe, out, None, folder / "log")]
    now = left(out)
    unequal = sorted(name for name in now.keys() | expected.keys() if now.get(name) != expected.get(name))
    found.append({"at": at, "operation": operations[at - 1], "codes": codes, "unequal": unequal})
print(json.dumps({"files": sorted(expected), "operations": operations, "kills": found}))
