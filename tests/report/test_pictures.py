import numpy as np
import pytest
import torch

from l2c.errors import ConfigError
from l2c.report.pictures import difference_gain, difference_pixels, enlargement, picture_grid, png, to_pixels


def test_pixels_cover_the_range():
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pixels(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_grey_pictures_get_three_colours_and_latents_are_refused():
    assert to_pixels(torch.zeros(2, 1, 4, 4)).shape == (2, 4, 4, 3)
    with pytest.raises(ConfigError, match="pictures have shape"):
        to_pixels(torch.zeros(2, 4, 4, 4))


def test_grid_puts_pictures_in_rows():
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3)
    grid = np.asarray(picture_grid(pixels, columns=3, scale=2))
    assert grid.shape == (2 * 8 + 2, 3 * 8 + 2 * 2, 3)
    assert (grid[10:, 10:18] == 4).all()
    assert (grid[:8, 8:10] == 255).all()


def test_a_single_picture_has_no_frame():
    pixels = np.zeros((1, 4, 6, 3), np.uint8)
    assert picture_grid(pixels).size == (6, 4)
    assert png(picture_grid(pixels)).startswith(b"\x89PNG")


def test_equal_pictures_differ_in_nothing():
    pixels = np.full((2, 4, 4, 3), 100, np.uint8)
    assert not difference_pixels(pixels, pixels, difference_gain(pixels, pixels)).any()


def test_differences_are_amplified_without_wrapping():
    pixels = np.full((1, 4, 4, 3), 100, np.uint8)
    other = pixels + 10
    gain = difference_gain(pixels, other)
    assert gain == 20
    assert (difference_pixels(pixels, other, gain) == 200).all()
    assert (difference_pixels(other, pixels, 50) == 255).all()


def test_difference_of_other_shapes_is_refused():
    with pytest.raises(ConfigError, match="cannot compare"):
        difference_pixels(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8), 1)


@pytest.mark.parametrize(("side", "factor"), [(8, 12), (32, 3), (256, 1)])
def test_small_pictures_are_enlarged(side, factor):
    assert enlargement(side) == factor
