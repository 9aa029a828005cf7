"""What Majority Kernels are tried on: networks of images and of text whose layers are kernels, the head apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from benchmarks.studies.study import llama
from benchmarks.trials.kernel_sides import Problem, Units

RESNETS: dict[str, dict[str, Any]] = {"resnet": {}, "resnet18": {"depths": (2, 2, 2, 2), "whole": True}}
INPUTS = {"digits": 64, "fashion_mnist": 784}
CLASSES = 10


def mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
    """Two hidden layers."""
    layers: list[nn.Module] = []
    for before in (inputs, width):
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


class ResNet(nn.Module):
    """The residual network of transformers with batch norms; images (N, 3, H, W) to logits (N, 10).

    Args:
        depths: blocks of each stage; a stage is twice as wide as the one before it.
        whole: a stem of 3 x 3 that keeps the image's size, as is usual for CIFAR-10; otherwise the stem quarters it.
    """

    def __init__(self, width: int, dropout: float, depths: Sequence[int] = (1, 1, 1), whole: bool = False) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        sizes = [2**stage * width for stage in range(len(depths))]
        config = ResNetConfig(embedding_size=width, hidden_sizes=sizes, depths=list(depths), layer_type="basic")
        self.body, self.dropout, self.head = ResNetModel(config), nn.Dropout(dropout), nn.Linear(sizes[-1], CLASSES)
        if whole:
            self.body.embedder.embedder.convolution = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.body.embedder.pooler = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x).pooler_output.flatten(1)))


def language_model(task: Mapping[str, Any], seed: int, dropout: float = 0.0, wider: int = 1) -> Any:
    """A llama over bytes. Dropout comes after the embedding and before each residual sum, as in GPT-2; the feed-forward layers are `wider`
    times as wide as is usual."""
    from meristem.recipes.tasks.language import causal_language_model

    entries = llama(task["width"], task["layers"], task["heads"])
    entries["intermediate_size"] *= wider
    model: Any = causal_language_model(entries, 256, task["sequence_length"], seed)
    if dropout:
        places = [(model.model, "embed_tokens")]
        for layer in model.model.layers:
            places += [(layer.self_attn, "o_proj"), (layer.mlp, "down_proj")]
        for parent, name in places:
            setattr(parent, name, nn.Sequential(getattr(parent, name), nn.Dropout(dropout)))
    return model


def _images(task: Mapping[str, Any]) -> Problem:
    width = task["width"]
    if "network" in task:
        shape = RESNETS[task["network"]]
        return Problem(
            lambda seed, dropout: ResNet(width, dropout, **shape),
            lambda model, x: model(x),
            lambda seed, factor: ResNet(factor * width, 0.0, **shape),
            head="head",
        )
    inputs = INPUTS[task["data"]]
    return Problem(
        lambda seed, dropout: mlp(inputs, width, dropout),
        lambda model, x: model(x),
        lambda seed, factor: mlp(inputs, factor * width, 0.0),
        lambda model: [([model[at]], model[at + 3]) for at in (0, 3)],
        head="6",
    )


def _text(task: Mapping[str, Any]) -> Problem:
    def units(model: Any) -> list[Units]:
        return [([layer.mlp.gate_proj, layer.mlp.up_proj], layer.mlp.down_proj) for layer in model.model.layers]

    return Problem(
        lambda seed, dropout: language_model(task, seed, dropout),
        lambda model, x: model(input_ids=x, use_cache=False).logits.transpose(1, 2),
        lambda seed, factor: language_model(task, seed, wider=factor),
        units,
    )


KINDS: dict[str, Callable[[Mapping[str, Any]], Problem]] = {"images": _images, "text": _text}


def problem_of(task: Mapping[str, Any]) -> Problem:
    """The networks of a task: of text where the task has a length of sequences, otherwise of images."""
    return KINDS["text" if "sequence_length" in task else "images"](task)
