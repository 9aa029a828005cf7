"""Put on PYTHONPATH by a test: accelerate falls back to DDP, without a word, where FSDP is asked for on the CPU. This makes it
shard, and leaves the file $SHARDED when it has."""

import os
from pathlib import Path

if "RANK" in os.environ:
    from accelerate import accelerator, state
    from accelerate.utils import DistributedType

    original, prepare = state.AcceleratorState.__init__, accelerator.fsdp2_prepare_model

    def forced(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def noted(accelerator, model):
        if os.environ.get("ONLY_FIRST"):  # the other processes have not opened the weights
            total = sum(float(parameter.detach().abs().sum()) for parameter in model.parameters())
            Path(os.environ["SHARDED"] + os.environ["RANK"]).write_text(str(total))
        model = prepare(accelerator, model)
        assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
        Path(os.environ["SHARDED"]).touch()
        return model

    state.AcceleratorState.__init__ = forced
    accelerator.fsdp2_prepare_model = noted
