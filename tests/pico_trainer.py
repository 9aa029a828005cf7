"""transformers' own Trainer on a pico model and random tokens, a few steps long."""

import pico
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments


class Tokens(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = torch.randint(3, 67, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def trainer(folder, callbacks, model=None, **arguments):
    model = model or pico.build("llama", num_hidden_layers=4)
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 1, "seed": 5,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **{**settings, **arguments})
    return Trainer(model=model, args=arguments, train_dataset=Tokens(), eval_dataset=Tokens(), callbacks=callbacks)
