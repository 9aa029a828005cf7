"""What a train node asks of the Trainer."""

from transformers import TrainingArguments

from meristem.recipes.specs.nodes import TrainSpec
from meristem.recipes.training.arguments import trainer_arguments as _arguments


def test_a_process_uses_one_gpu_however_many_it_sees(monkeypatch, tmp_path):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 8))
    spec = TrainSpec(model={"model_type": "llama"}, examples=64, learning_rate=1e-3, batch_size=8)
    arguments = _arguments(spec, tmp_path, steps=8, seed=0)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 8
