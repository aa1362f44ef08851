import math

import pytest
import torch

from l2c.errors import ConfigError
from l2c.evaluation.metrics import psnr, rmse


def test_psnr_is_paired_and_per_image():
    references = torch.zeros(2, 3, 8, 8)
    images = torch.stack([torch.full((3, 8, 8), 0.02), torch.full((3, 8, 8), -0.2)])
    assert psnr(images, references).tolist() == pytest.approx([40.0, 20.0])
    assert rmse(images, references).tolist() == pytest.approx([0.02, 0.2])


def test_equal_images_have_infinite_psnr():
    images = torch.rand(3, 3, 4, 4)
    assert psnr(images, images).tolist() == [math.inf] * 3


def test_data_range_is_the_largest_difference():
    images, references = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 25.5)
    assert psnr(images, references, data_range=255).item() == pytest.approx(20.0)
    with pytest.raises(ConfigError, match="positive"):
        psnr(images, references, data_range=0)


def test_half_precision_is_measured_exactly():
    images, references = torch.full((1, 3, 64, 64), 0.001).half(), torch.zeros(1, 3, 64, 64).half()
    assert rmse(images, references).item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 8, 8)])
def test_images_that_do_not_pair_are_refused(shape):
    with pytest.raises(ConfigError, match="equally shaped"):
        rmse(torch.zeros(2, 3, 8, 8), torch.zeros(shape))
