"""Methods and training options that cannot be combined, and why. All other pairs work:
tests/recipes/test_compositions.py.
"""

from __future__ import annotations

# Features that cannot be combined, and why. The first in alphabetical order names the second.
CONFLICTS: dict[str, dict[str, str]] = {
    "cache_prefix": {
        "checkpointing": "recomputation would run the prefix that the cache avoids; the prefix has no gradients, so no memory is saved",
        "compile": "a compiled network would run the prefix that the cache avoids",
        "fsdp": "each process caches its own examples, and gets other examples in the next epoch",
        "majority": "the cache holds the outputs of one network, and kernels make another network in each step",
        "processes": "each process caches its own examples, and gets other examples in the next epoch",
        "subnetwork": "the cache holds the output of all blocks before the module",
    },
    "carry": {
        "incubate": "the module is another network than the one whose moments are carried; use optimizer: reset",
        "majority": "the moments of one kernel do not fit several; use optimizer: reset",
    },
    "compile": {
        "subnetwork": "a compiled network always runs the same blocks; compile each block instead (`block.compile()`)"
    },
    "distill": {
        "fsdp": "each process would hold a whole teacher, which sharding should avoid",
        "incubate": "the meta network around the module has another depth than the teacher; distil after assembling",
    },
    "fresh": {
        "incubate": "the module is not the network that was grown",
        "majority": "kernels are not the tensors that were grown",
    },
    "incubate": {
        "scale_learning_rate": "a growth records its scales for the whole network, not for the module",
        "subnetwork": "a step that leaves out the module's blocks trains nothing, since all others are frozen",
        "train_only": "the module is not the network that was grown",
    },
    "majority": {
        "scale_learning_rate": "kernels start from new values, at the layer's own scale",
        "train_only": "kernels are not the tensors that were grown",
    },
}
