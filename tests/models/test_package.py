from __future__ import annotations

import subprocess
import sys


def test_models_and_loading_stay_light() -> None:
    heavy = ["accelerate", "diffusers", "huggingface_hub", "pyarrow", "PIL", "torch._dynamo"]
    code = (
        "import sys, l2c.models; l2c.models.load_model('dit-mini-cifar10'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
