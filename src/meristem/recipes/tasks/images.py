"""Images, to be classified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meristem.data import LabelledImages, open_images
from meristem.errors import MeristemError
from meristem.recipes.specs.data_specs import ImageSpec
from meristem.recipes.tasks.task import Split, Task, check_some, class_of, network


class ImageClassification(Task):
    """Predict the class of an image. `image_size`, `num_channels` and `num_labels` of new networks follow the
    data.
    """

    def __init__(self, data: ImageSpec) -> None:
        self.data, self.images = data, open_images(data.source, data.fraction, data.eval_examples)
        self.description, self.fingerprint = self.images.description, self.images.fingerprint

    def new_model(self, entries: Mapping[str, Any], seed: int) -> nn.Module:
        from transformers import AutoModelForImageClassification

        channels, height, width = self.images.shape
        size = height if height == width else (height, width)
        defaults = {"image_size": size, "num_channels": channels, "num_labels": self.images.num_labels}
        return network(AutoModelForImageClassification, entries, defaults, seed)

    def check(self, model: nn.Module, label: str) -> None:
        labels: int = model.config.num_labels  # type: ignore[union-attr, assignment]
        if labels < self.images.num_labels:
            raise MeristemError(f"{label}: the data has {self.images.num_labels} classes, the model's head {labels}")

    def training_set(self, count: int, seed: int, offset: int) -> LabelledImages:
        own = self.images
        return LabelledImages(own.train, own.train_labels, count, seed, offset, self.data.augment)

    def evaluation_set(self, split: Split = "eval") -> LabelledImages:
        own = self.images
        images, labels = (own.eval, own.eval_labels) if split == "eval" else (own.tune, own.tune_labels)
        check_some(len(images), self.data.source, split)
        return LabelledImages(images, labels, len(images))

    def example(self) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(1, *self.images.shape), "labels": torch.zeros(1, dtype=torch.long)}

    def trainer_options(self) -> dict[str, Any]:
        return {"compute_metrics": _accuracy, "preprocess_logits_for_metrics": lambda logits, _: class_of(logits)}


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}
