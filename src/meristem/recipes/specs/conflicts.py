"""Methods and training options that cannot be combined, and why. All other pairs work:
tests/recipes/test_compositions.py.
"""

from __future__ import annotations

# Features that cannot be combined, and why. The first in alphabetical order names the second.
CONFLICTS: dict[str, dict[str, str]] = {
    "cache_prefix": {
        "checkpointing": "what is computed again would run the prefix after all; its blocks have no gradients to save memory for",
        "compile": "a compiled network would run the prefix that the cache leaves out",
        "fsdp": "each process remembers its own examples, and meets others in the next round",
        "majority": "the cache remembers examples for one network, kernels make another in each step",
        "processes": "each process remembers its own examples, and meets others in the next round",
        "subnetwork": "the cache remembers what all blocks in front of the module give out",
    },
    "carry": {
        "incubate": "the module is another network than the one whose moments are carried; use optimizer: reset",
        "majority": "the moments of one kernel are none of several; use optimizer: reset",
    },
    "compile": {
        "subnetwork": "a compiled network has its blocks built in; compile the blocks instead (`block.compile()`)"
    },
    "distill": {
        "fsdp": "each process holds a whole teacher, which is what sharding is there to avoid",
        "incubate": "the module stands in a meta network that has another depth than the teacher's; distil after assembling",
    },
    "fresh": {
        "incubate": "the module is another network than the one that has grown",
        "majority": "kernels are other tensors than those that have grown",
    },
    "incubate": {
        "scale_learning_rate": "the module has no scales of a growth",
        "subnetwork": "a step that leaves out the module's blocks trains nothing, since all others are frozen",
        "train_only": "the module is another network than the one that has grown",
    },
    "majority": {
        "scale_learning_rate": "kernels begin anew, at the layer's own scale",
        "train_only": "kernels are other tensors than those that have grown",
    },
}
