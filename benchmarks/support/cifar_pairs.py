"""AdaNet's own task (arXiv:1607.01097, section 6): two classes of CIFAR-10, as 154 numbers for each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import rgb_to_hsv

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def is_pair(name: str) -> bool:
    """Whether it names two classes: "deer-truck", and not a table like "adult-train"."""
    return len(name.split("-")) == 2 and set(name.split("-")) <= set(NAMES)


def features(images: np.ndarray) -> np.ndarray:
    """154 numbers in [0, 1] for each image: 9 orientations of gradient in 4 x 4 cells, and a histogram of 10 hues."""
    grey = images.astype(float) @ [0.299, 0.587, 0.144]
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    right[:, :, :-1], down[:, :-1] = np.diff(grey, axis=2), np.diff(grey, axis=1)
    size, angle = np.hypot(right, down), np.degrees(np.arctan2(down, right + 1e-15)) + 90
    cells = []
    for number in range(9):
        inside = (angle >= 20 * number) & (angle < 20 * (number + 1))
        cells.append((size * inside).reshape(-1, 4, 8, 4, 8).mean((2, 4)).reshape(-1, 16))
    hue = rgb_to_hsv(images / 255.0)[..., 0].reshape(len(images), -1)
    hues = np.stack([np.histogram(row, 10, (0, 1), density=True)[0] for row in hue])
    joined = np.concatenate([*cells, hues], 1)
    low, high = joined.min(0), joined.max(0)
    return (joined - low) / np.where(high > low, high - low, 1)


def load_pairs(data: Any, pairs: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    parts = [data.jpegs("cifar10_jpeg", split) for split in ("train", "test")]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    sets = {}
    for pair in pairs:
        numbers = [NAMES.index(name) for name in pair.split("-")]
        chosen = np.isin(labels, numbers)
        order = np.random.default_rng(0).permutation(int(chosen.sum()))
        sets[pair] = features(images[chosen])[order], (labels[chosen] == numbers[1]).astype(int)[order]
    return sets
