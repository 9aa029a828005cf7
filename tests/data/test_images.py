"""Labelled images: where they come from, how they are varied, and what is refused."""

import numpy as np
import pytest
import torch

import meristem as ms
from meristem.data import LabelledImages, open_images


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0)
    return {
        "x_train": draw.integers(0, 256, (40, 8, 6, 3), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": draw.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8),
        "y_test": np.arange(12) % 4,
    }


def saved(tmp_path, arrays):
    np.savez(tmp_path / "pictures.npz", **arrays)
    return str(tmp_path / "pictures.npz")


def test_digits_are_on_every_machine():
    digits = open_images("digits")
    assert (digits.train.shape, digits.eval.shape, digits.num_labels) == ((1295, 1, 8, 8), (359, 1, 8, 8), 10)
    assert abs(digits.train.mean()) < 1e-5
    assert digits.train.std() == pytest.approx(1, abs=1e-5)
    half = open_images("digits", fraction=0.5, eval_examples=20)
    assert (len(half.train), len(half.eval)) == (648, 20)
    assert half.tune.shape == digits.tune.shape == (143, 1, 8, 8)
    parts = [{image.tobytes() for image in part} for part in (digits.train, digits.tune, digits.eval)]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
    assert half.fingerprint != digits.fingerprint == open_images("digits").fingerprint


def test_an_npz_file(tmp_path, arrays):
    images = open_images(saved(tmp_path, arrays))
    assert images.shape == (3, 8, 6)
    position = int(np.random.default_rng(0).permutation(40)[0])
    used = arrays["x_train"][np.random.default_rng(0).permutation(40)[:36]]  # the other four are for tuning
    expected = (arrays["x_train"][position].astype(np.float32) - used.mean()) / used.std()
    np.testing.assert_allclose(images.train[0], expected.transpose(2, 0, 1), rtol=1e-5)
    assert images.train_labels[0] == arrays["y_train"][position]


def test_a_folder_of_images(tmp_path, arrays):
    pytest.importorskip("datasets")
    from PIL import Image

    for split in ("train", "test"):
        for i, (pixels, label) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)):
            place = tmp_path / "pictures" / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i:02d}.png")
    images = open_images(str(tmp_path / "pictures"))
    assert (images.train.shape, images.eval.shape, images.num_labels) == ((36, 3, 8, 6), (12, 3, 8, 6), 4)
    assert sorted([*images.train_labels, *images.tune_labels]) == sorted(arrays["y_train"])
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "pictures" / "test" / "class0" / "odd.png")
    with pytest.raises(ms.MeristemError, match="images of different shapes"):
        open_images(str(tmp_path / "pictures"))


@pytest.mark.parametrize("change, message", [
    ({"y_train": None}, "no array .*y_train"),
    ({"y_train": np.arange(39)}, "whole labels from 0"),
    ({"y_test": np.linspace(0, 1, 12)}, "y_test .12,. float64"),
    ({"x_test": np.zeros((12, 8, 8, 3))}, r"x_test \(12, 8, 8, 3\)"),
])  # fmt: skip
def test_arrays_that_do_not_fit(tmp_path, arrays, change, message):
    arrays = {key: value for key, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(ms.MeristemError, match=message):
        open_images(saved(tmp_path, arrays))


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(ms.MeristemError, match="no such file"):
        open_images(str(tmp_path / "nothing.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ms.MeristemError, match="not a NumPy"):
        open_images(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "objects.npz", x_train=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ms.MeristemError, match="not a NumPy"):  # it would have to be unpickled
        open_images(str(tmp_path / "objects.npz"))


def test_augmentation_is_a_function_of_seed_and_position():
    images = np.arange(2 * 16 * 16, dtype=np.float32).reshape(2, 1, 16, 16)
    labels = np.array([0, 1])
    sets = [LabelledImages(images, labels, 40, seed, 5, ("crop", "flip")) for seed in (0, 0, 1)]
    views = [[s[i]["pixel_values"] for i in range(40)] for s in sets]
    assert all(torch.equal(a, b) for a, b in zip(views[0], views[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(views[0], views[2], strict=True))
    later = LabelledImages(images, labels, 30, 0, 15, ("crop", "flip"))
    assert torch.equal(later[0]["pixel_values"], views[0][10])  # a later stage goes on where this one is
    assert any(v[0, 0, 0] > v[0, 0, 1] for v in views[0])  # flipped
    plain = LabelledImages(images, labels, 2)
    assert sorted(float(plain[i]["pixel_values"].sum()) for i in range(2)) == sorted(images.sum((1, 2, 3)))
