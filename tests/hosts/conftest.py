import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from l2c.testing import tiny_pipeline


@pytest.fixture
def pixart():
    return tiny_pipeline("pixart")


@pytest.fixture
def flux():
    return tiny_pipeline("flux")


@pytest.fixture
def wan22():
    return tiny_pipeline("wan2.2")
