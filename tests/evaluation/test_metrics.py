import math

import pytest
import torch

from l2c.errors import ConfigError
from l2c.evaluation.metrics import psnr, rmse, ssim


def test_psnr_is_paired_and_per_image():
    targets = torch.zeros(2, 3, 8, 8)
    images = torch.stack([torch.full((3, 8, 8), 0.02), torch.full((3, 8, 8), -0.2)])
    assert psnr(images, targets).tolist() == pytest.approx([40.0, 20.0])
    assert rmse(images, targets).tolist() == pytest.approx([0.02, 0.2])


def test_equal_images_have_infinite_psnr():
    images = torch.rand(3, 3, 4, 4)
    assert psnr(images, images).tolist() == [math.inf] * 3


def test_data_range_is_the_largest_difference():
    images, targets = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 25.5)
    assert psnr(images, targets, data_range=255).item() == pytest.approx(20.0)
    with pytest.raises(ConfigError, match="more than 0"):
        psnr(images, targets, data_range=0)


def test_half_precision_is_measured_exactly():
    images, targets = torch.full((1, 3, 64, 64), 0.001).half(), torch.zeros(1, 3, 64, 64).half()
    assert rmse(images, targets).item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 8, 8)])
def test_images_that_do_not_pair_are_refused(shape):
    with pytest.raises(ConfigError, match="equally shaped"):
        rmse(torch.zeros(2, 3, 8, 8), torch.zeros(shape))


def test_ssim_of_known_images():
    flat = torch.zeros(1, 1, 12, 12)
    # two constant images: only the means count, (2 x y + c1) / (x^2 + y^2 + c1) with c1 = (0.01 * 2)^2
    expected = (2 * 0.2 * 0.4 + 4e-4) / (0.2**2 + 0.4**2 + 4e-4)
    assert ssim(flat + 0.2, flat + 0.4).item() == pytest.approx(expected, rel=1e-9)
    checks = torch.ones(1, 1, 12, 12)
    checks[..., ::2] = -1
    assert ssim(checks, -checks).item() == pytest.approx(-1, abs=0.02)
    assert ssim(checks, checks).item() == pytest.approx(1)


def test_ssim_by_the_definition_at_one_place(generator):
    """An image of the size of the window has one place: the formula, written out."""
    x, y = torch.rand(2, 1, 1, 11, 11, generator=generator, dtype=torch.float64)
    weight = torch.tensor(
        [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for i in range(11) for j in range(11)]
    )
    weight = (weight.double() / weight.double().sum()).reshape(11, 11)
    mx, my = float((weight * x).sum()), float((weight * y).sum())
    vx, vy = float((weight * (x - mx) ** 2).sum()), float((weight * (y - my) ** 2).sum())
    cxy = float((weight * (x - mx) * (y - my)).sum())
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(x, y).item() == pytest.approx(expected, rel=1e-6)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ConfigError, match="at least 11x11 pixels, got 8x8"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_relative_errors_are_in_units_of_each_target():
    targets = torch.stack([torch.full((4, 8, 8), 2.0), torch.full((4, 8, 8), -0.5)])
    assert rmse(1.1 * targets, targets, "relative").tolist() == pytest.approx([0.1, 0.1])
    assert rmse(torch.zeros(2, 16, 4), torch.ones(2, 16, 4), "relative").tolist() == [1.0, 1.0]  # tokens
    with pytest.raises(
        ConfigError, match="unknown unit of an error 'percent'.*choose one of absolute, relative"
    ):
        rmse(targets, targets, "percent")
