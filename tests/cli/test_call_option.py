"""`--call`: whatever else a pipeline is called with."""

import pytest
from PIL import Image

from l2c.cli.targets import read_call
from l2c.errors import ConfigError


def test_values_are_json_or_text_or_pictures(tmp_path):
    Image.new("L", (4, 6)).save(tmp_path / "cat.png")
    call = read_call(["strength=0.6", "negative_prompt=blurry", f"image=@{tmp_path / 'cat.png'}"])
    picture = call.pop("image")
    assert (picture.size, picture.mode) == ((4, 6), "RGB")
    assert call == {"strength": 0.6, "negative_prompt": "blurry"}


def test_what_is_no_setting_and_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--call takes NAME=VALUE"):
        read_call(["=@cat.png"])
    with pytest.raises(ConfigError, match="nothing.png' is no picture; give the file of one after @"):
        read_call([f"image=@{tmp_path / 'nothing.png'}"])
