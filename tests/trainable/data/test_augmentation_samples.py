"""Augmentation to be looked at."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spaces import Dataset, Hyperparameters
from trainable import train
from trainable.data.augmentation_samples import N_DRAWS, augmentation_samples, draw_grid, sample_images
from trainable.data.cache import DecodedSet, decode_once, find_training_images


@pytest.fixture(scope="module")
def decoded(tiny_digits: Dataset) -> DecodedSet:
    return decode_once(tiny_digits, "train")


def test_images_of_different_classes_are_chosen(decoded: DecodedSet) -> None:
    images = sample_images(decoded)
    assert images.shape == (6, 17, 17, 3)
    places = [int(np.flatnonzero((decoded.images == image).all(axis=(1, 2, 3)))[0]) for image in images]
    assert len({int(decoded.labels[place]) for place in places}) == 6


def test_each_transform_alone_is_certain_and_does_its_own_thing(decoded: DecodedSet) -> None:
    images = sample_images(decoded)
    never = Hyperparameters(flip_p=0.0, shift_scale_rotate_p=0.0, coarse_dropout_p=0.0)
    columns = augmentation_samples(images, never, decoded.mean)
    np.testing.assert_array_equal(columns["original"], images)
    np.testing.assert_array_equal(columns["flip"], images[:, :, ::-1])
    assert all((columns["shift, scale, turn"] != images).any(axis=(1, 2, 3)))
    hole = np.rint(255 * np.array(decoded.mean)).astype(int)
    for image in columns["coarse dropout"].astype(int):
        assert (abs(image - hole).max(axis=2) <= 1).sum() >= 8 * 8
    for draw in range(1, N_DRAWS + 1):
        np.testing.assert_array_equal(columns[f"as trained, {draw}"], images)


def test_the_grid_has_a_cell_an_image_and_shows_it_as_it_is(decoded: DecodedSet, tmp_path: Path) -> None:
    columns = augmentation_samples(sample_images(decoded)[:3], Hyperparameters(), decoded.mean)
    draw_grid(tmp_path / "grid.png", columns)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    cell = np.repeat(np.repeat(columns["original"][0], 5, axis=0), 5, axis=1)
    assert any((grid[top : top + 85, 6 : 6 + 85] == cell).all() for top in range(grid.shape[0] - 85)), (
        "17 pixels are drawn as 85"
    )
    assert grid.shape[0] > 3 * 85


def test_the_command_draws_the_baseline_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "dataset.image_size=17", "--set", "dataset.train_limit=200"]
    assert train.main([*settings, "--show-augmentations", "grid.png"]) == 0
    assert capsys.readouterr().out.startswith("grid.png: training images")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert train.main([*settings, "--show-augmentations", "grid.svg"]) == 2
    assert "must be the name of a PNG" in capsys.readouterr().err
    assert train.main([*settings, "--show-augmentations", "nowhere/grid.png"]) == 2


def test_images_are_found_by_what_they_are(decoded: DecodedSet, tiny_digits: Dataset) -> None:
    found = find_training_images(decoded.content_sha256, 17)
    assert found is not None
    assert found.folder == decoded.folder
    assert find_training_images("0" * 64, 17) is None
    assert find_training_images(decoded.content_sha256, 18) is None
    test = decode_once(tiny_digits, "test")
    assert find_training_images(test.content_sha256, 17) is None, "the test split is never found"
