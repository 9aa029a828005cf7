"""Labelled images for training and evaluation, from scikit-learn, a NumPy file or a Hugging Face data set."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from meristem.data.hub import load_data_set, split_of
from meristem.data.order import Order, Ordered, splits
from meristem.errors import MeristemError, first_line

Augmentation = Literal["crop", "flip"]
CROP = 8  # an eighth of the side is how far a crop moves at most
KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Images:
    """Pixels (examples, channels, height, width) as float32, with mean 0 and standard deviation 1 over the
    training images; labels (examples,) from 0 to `num_labels` - 1; and a fingerprint of exactly this data.
    """

    train: np.ndarray
    train_labels: np.ndarray
    tune: np.ndarray
    tune_labels: np.ndarray
    eval: np.ndarray
    eval_labels: np.ndarray
    num_labels: int
    fingerprint: str
    description: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return self.train.shape[1:]


def open_images(source: str, fraction: float = 1.0, eval_examples: int | None = None) -> Images:
    """Read labelled images.

    Args:
        source: "digits" (of scikit-learn, on every machine; every fifth image is held out), an `.npz` file
            with the arrays of Keras x_train, y_train, x_test and y_test (images as examples x height x width,
            optionally x channels), a folder `train/CLASS/*.png` and `test/CLASS/*.png`, or the name of a
            Hugging Face data set with the columns `image` and `label`. The last two need the extra `data`.
        fraction: the share of the training images that is used. The choice is random, and the same on every
            machine.
        eval_examples: how many held-out images are used, equally many of each class. All of them by default.

    Raises:
        MeristemError: if the source does not exist, or if its arrays do not fit each other.
    """
    if source == "digits":
        arrays = _digits()
    elif Path(source).is_file():
        arrays = _numpy_file(Path(source))
    elif not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.endswith(".npz")):
        raise MeristemError(f"{source}: no such file or folder")
    else:
        arrays = _data_set(source)
    x, y, held_x, held_y = (np.asarray(array) for array in arrays)
    _check(source, x, y, held_x, held_y)
    chosen, tuning, kept = splits(len(x), len(held_x), fraction, eval_examples)
    tune_x, tune_y, held_x, held_y = x[tuning], y[tuning], held_x[kept], held_y[kept]
    x, y = x[chosen], y[chosen]
    digest = hashlib.sha256()
    for array in (x, y, tune_x, tune_y, held_x, held_y):
        digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    mean, deviation = float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64)) or 1.0
    labels = int(max(array.max() for array in (y, tune_y, held_y) if array.size)) + 1
    train, tune, held = (
        _channels_first((array.astype(np.float32) - mean) / deviation) for array in (x, tune_x, held_x)
    )
    description = (
        f"{source}: {len(x):,} training, {len(tune_x):,} tuning and {len(held_x):,} evaluation images, {labels} classes"
    )
    targets = [array.astype(np.int64) for array in (y, tune_y, held_y)]
    return Images(train, targets[0], tune, targets[1], held, targets[2], labels, digest.hexdigest(), description)


class LabelledImages(Ordered):
    """Training images in the order of a run. The augmentation of each depends only on (seed, position).

    Args:
        images: the pixels of `Images`.
        labels: the labels of `Images`.
        count: how many images this run reads.
        seed: the seed of the order (see `Order`).
        offset: how many examples earlier stages have read (see `Order`).
        augment: "crop" (a shift by up to an eighth of the side, with repeated edges) and "flip" (left to
            right, for half of the images).
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        count: int,
        seed: int = 0,
        offset: int = 0,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        super().__init__(count, Order(len(images), seed, offset))
        self.images, self.labels, self.augment = images, labels, augment

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        index = self.order.at(position)
        image = self.images[index]
        if self.augment:
            draw = np.random.default_rng((self.order.seed, 1, position + self.order.offset))
            image = _augmented(image, self.augment, draw)
        return {"pixel_values": torch.from_numpy(image.copy()), "labels": torch.tensor(self.labels[index])}


def _augmented(image: np.ndarray, augment: Sequence[Augmentation], draw: np.random.Generator) -> np.ndarray:
    if "crop" in augment:
        height, width = image.shape[1:]
        reach = max(1, height // CROP)
        top, left = draw.integers(0, 2 * reach + 1, size=2)
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        image = padded[:, top : top + height, left : left + width]
    if "flip" in augment and draw.random() < 0.5:
        image = image[:, :, ::-1]
    return image


def _digits() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_digits

    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    images, held = images.reshape(-1, 8, 8), np.arange(len(labels)) % 5 == 4
    return images[~held], labels[~held], images[held], labels[held]


def _numpy_file(path: Path) -> tuple[np.ndarray, ...]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[key] for key in KEYS)
    except KeyError as error:
        raise MeristemError(f"{path} has no array {first_line(error)}; it needs {', '.join(KEYS)}") from error
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise MeristemError(f"{path} is not a NumPy .npz file of plain arrays: {first_line(error)}") from error


def _data_set(source: str) -> tuple[np.ndarray, ...]:
    found: list[np.ndarray] = []
    for rows in split_of(load_data_set(source, ["image", "label"], builder="imagefolder"), source):
        pictures = [np.asarray(image) for image in rows["image"]]
        shapes = {picture.shape for picture in pictures}
        if len(shapes) > 1:
            raise MeristemError(
                f"{source}: images of different shapes, such as {sorted(shapes, key=str)[:3]}; resize them to one shape"
            )
        found += [np.stack(pictures), np.asarray(rows["label"])]
    return tuple(found)


def _check(source: str, x: np.ndarray, y: np.ndarray, held_x: np.ndarray, held_y: np.ndarray) -> None:
    fits = x.ndim in (3, 4) and x.shape[1:] == held_x.shape[1:] and len(x) == len(y) and len(held_x) == len(held_y)
    whole = all(np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1 and labels.size for labels in (y, held_y))
    if not fits or not whole or min(y.min(), held_y.min()) < 0:
        shapes = ", ".join(
            f"{key} {array.shape} {array.dtype}" for key, array in zip(KEYS, (x, y, held_x, held_y), strict=True)
        )
        raise MeristemError(
            f"{source}: expected images (examples, height, width[, channels]) and whole labels from 0, got {shapes}"
        )


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
