import importlib.util
import math

import pytest
import torch

from l2c.bootstrap import (
    ErrorSummary,
    mean_confidence_interval,
    paired_difference,
    statistic_confidence_interval,
)
from l2c.errors import CheckpointError, ConfigError, DataError
from l2c.evaluation.distribution import (
    Gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from l2c.evaluation.features import InceptionV3, _import_alone, extract, make_extractor, to_bytes
from l2c.evaluation.lpips import _TAPS, Lpips
from l2c.evaluation.real_images import RealImages
from l2c.learning.data import ImageData, load_images


def test_frechet_distance_of_gaussians_with_a_known_answer(generator):
    def diagonal(mean, deviations):
        return Gaussian(torch.tensor(mean).double(), torch.diag(torch.tensor(deviations).double() ** 2), 100)

    first, second = diagonal([0.0, 1.0, 2.0], [1.0, 2.0, 0.5]), diagonal([1.0, 1.0, 0.0], [2.0, 2.0, 1.5])
    # covariances that commute: |difference of means|^2 + sum of (difference of deviations)^2
    assert frechet_distance(first, second) == pytest.approx(5.0 + 1.0 + 0.0 + 1.0)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T, 100) for g in (first, second)]
    assert frechet_distance(*turned) == pytest.approx(7.0)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_from_few_features_is_that_of_their_gaussian(generator):
    features = torch.randn(6, 20, generator=generator)
    other = Gaussian.fit(torch.randn(50, 20, generator=generator) + 0.3)
    assert frechet_distance(features, other) == pytest.approx(
        frechet_distance(Gaussian.fit(features), other), rel=1e-6
    )


def test_kernel_distance_is_unbiased_and_known(generator):
    same = [
        kernel_distance(torch.randn(40, 3, generator=generator), torch.randn(40, 3, generator=generator))
        for _ in range(60)
    ]
    error = torch.tensor(same).std() / math.sqrt(len(same))
    assert abs(sum(same) / len(same)) < 3 * error
    ones, zeros = torch.ones(4, 2), torch.zeros(5, 2)
    assert kernel_distance(ones, zeros) == pytest.approx((1 + 1) ** 3 + 1 - 2)


def test_inception_score_of_known_classes():
    sure = torch.full((100, 4), -1e3)
    sure[torch.arange(100), torch.arange(100) % 4] = 1e3
    assert inception_score(sure) == pytest.approx(4.0)  # sure of each, all four alike often
    assert inception_score(torch.zeros(100, 4)) == pytest.approx(1.0)


def test_precision_and_recall_on_constructed_sets(generator):
    left = torch.randn(40, 2, generator=generator) * 0.1
    right = left + 10
    assert precision_recall(left, left) == (1.0, 1.0)
    assert precision_recall(left, right) == (0.0, 0.0)
    both = torch.cat([left, right])
    assert precision_recall(left, both) == (1.0, 0.5)  # what is there is real, half of the real is missing
    assert precision_recall(both, left) == (0.5, 1.0)
    with pytest.raises(ConfigError, match="more than 3 images on either side, got 3 and 40"):
        precision_recall(left[:3], left)


def test_intervals_cover_and_tell_noise_from_difference(generator):
    covered = 0
    for seed in range(50):
        values = torch.randn(30, generator=generator).tolist()
        interval = mean_confidence_interval(values, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 42 <= covered <= 50
    values = torch.randn(30, generator=generator)
    assert paired_difference((values + 0.1).tolist(), values.tolist()).excludes_zero
    noise = torch.randn(30, generator=generator)
    assert not paired_difference((values + noise - noise.mean()).tolist(), values.tolist()).excludes_zero
    with pytest.raises(ConfigError, match="got 1 figures for 2 figures of the same images"):
        paired_difference([1.0], [1.0, 2.0])


def test_error_summary_has_the_mean_the_95th_percentile_and_the_worst():
    summary = ErrorSummary.of([float(value) for value in range(101)])
    assert (summary.mean.value, summary.p95, summary.worst) == (50, 95, 100)
    assert summary.mean.low < 50 < summary.mean.high
    with pytest.raises(ConfigError, match="no images"):
        ErrorSummary.of([])


def test_interval_of_a_set_lies_around_its_figure():
    values = torch.arange(20.0)
    interval = statistic_confidence_interval(20, lambda rows: float(values[rows].std()))
    assert interval.low < interval.value < interval.high
    assert interval.value == pytest.approx(float(values.std()))


@pytest.mark.slow
def test_efficientnet_distance_of_real_images_grows_with_noise(shared, generator, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("pyarrow")
    extractor = make_extractor("efficientnet-lite0")
    train = load_images(shared / "data" / "cifar10-train-25k.parquet", image_size=32)
    test = load_images(shared / "data" / "cifar10-test.parquet", image_size=32)
    real = RealImages.of(extractor, train, num_images=140)
    real.save(tmp_path / "train.safetensors")
    real = RealImages.load(tmp_path / "train.safetensors", extractor.name)
    images = torch.stack([test.image(i) for i in range(60)])
    noise = torch.randn(images.shape, generator=generator)
    features = [
        extract(extractor, to_bytes(images + level * noise).split(16))[0] for level in (0.0, 0.25, 0.8)
    ]
    distances = [frechet_distance(values, real.gaussian) for values in features]
    assert distances[0] < distances[1] / 1.5
    assert distances[1] < distances[2] / 1.1
    kernel = [kernel_distance(values, real.features) for values in features]
    assert kernel[0] < kernel[1] < kernel[2]
    precision = [precision_recall(values, real.features)[0] for values in features]
    assert precision[0] > precision[2]


def test_statistics_of_another_network_is_refused(tmp_path):
    gaussian = Gaussian(torch.zeros(2).double(), torch.eye(2).double(), 3)
    RealImages("inception-v3", "images", gaussian, torch.zeros(3, 2)).save(tmp_path / "r.safetensors")
    with pytest.raises(DataError, match="statistics of inception-v3 but efficientnet-lite0 is asked for"):
        RealImages.load(tmp_path / "r.safetensors", "efficientnet-lite0")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="does not hold statistics of real images"):
        RealImages.load(tmp_path / "broken.safetensors", "efficientnet-lite0")


def test_images_of_mixed_sizes_are_named(tmp_path):
    from PIL import Image

    for index, size in enumerate((8, 8, 9)):
        Image.new("RGB", (size, size)).save(tmp_path / f"{index}.png")

    class Flat:
        name = "flat"
        distance_name = "FD-flat"

        def __call__(self, pixels):
            return pixels.float().flatten(1), pixels.float().flatten(1)

    data: ImageData = load_images(tmp_path, image_size=8)
    with pytest.raises(DataError, match=r"2\.png is 9x9 pixels, but 8x8 are needed; resize the images first"):
        RealImages.of(Flat(), data)


def test_inception_weights_are_read_from_a_file(tmp_path):
    """The real loading path; the weights are random, since the true ones cannot be had here."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    with pytest.raises(CheckpointError, match="there is no file of weights"):
        InceptionV3(tmp_path / "no.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights of the standard Inception network"):
        InceptionV3(tmp_path / "other.pth")
    module = _import_alone("torch_fidelity", "feature_extractor_inceptionv3")
    with torch.device("meta"):
        network = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
        shapes = _inception_shapes(module, network)
    torch.manual_seed(0)
    torch.save({name: torch.rand(shape) * 0.02 for name, shape in shapes.items()}, tmp_path / "weights.pth")
    extractor = InceptionV3(tmp_path / "weights.pth")
    features, logits = extractor(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert extractor.distance_name == "FID"
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert bool(features.isfinite().all())


def _inception_shapes(module, network):
    """Names and shapes of the network's weights, found without reading any."""
    seen = {}

    def stop(path, weights_only):
        raise StopIteration

    original = torch.load
    torch.load = stop
    try:
        network.__init__("shapes", ["2048"], feature_extractor_weights_path="none")
    except StopIteration:
        seen = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    finally:
        torch.load = original
    return seen


def test_unknown_features_are_a_sentence():
    with pytest.raises(
        ConfigError, match="unknown features 'resnet'; .*choose one of efficientnet-lite0, or inception:PATH"
    ):
        make_extractor("resnet")


def test_lpips_is_the_weighted_distance_of_unit_activations(tmp_path, generator):
    torch.manual_seed(0)
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    weights, channels = {}, 3
    for width, place in zip(widths, places, strict=True):
        weights[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        weights[f"features.{place}.bias"] = torch.randn(width) * 0.1
        channels = width
    torch.save({**weights, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(heads, tmp_path / "lpips.pth")
    lpips = Lpips(tmp_path / "vgg.pth", tmp_path / "lpips.pth")
    x = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    y = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    assert lpips(x, x).tolist() == [0.0, 0.0]
    a, b = lpips._activations(x[:1]), lpips._activations(y[:1])
    expected = sum(
        float(((u / u.norm(dim=1, keepdim=True) - v / v.norm(dim=1, keepdim=True)) ** 2 * head).sum(1).mean())
        for u, v, head in zip(a, b, heads.values(), strict=True)
    )
    assert lpips(x, y)[0] == pytest.approx(expected, rel=1e-3)
    assert [tuple(t.shape[1:]) for t in a] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]
    assert len(_TAPS) == 5
    del heads["lin4.model.1.weight"]
    torch.save(heads, tmp_path / "lpips.pth")
    with pytest.raises(CheckpointError, match="lacks the linear weights"):
        Lpips(tmp_path / "vgg.pth", tmp_path / "lpips.pth")
