import pytest

from l2c.compare.baselines import BASELINES
from l2c.compare.config import CompareConfig, preset_names, to_plain
from l2c.compare.plan import plan
from l2c.errors import ConfigError
from l2c.methods import all_methods

BASE = 'model = "dit-mini-cifar10"\n[[base]]\nsolver = "ddim"\nsteps = 10\n'


def load(tmp_path, text):
    path = tmp_path / "compare.toml"
    path.write_text(text)
    return CompareConfig.load(path)


def test_plan_names_a_variant_per_base_method_settings_and_budget(tmp_path):
    config = load(
        tmp_path,
        BASE
        + 'budgets = [0.5, 0.25]\n[[method]]\nname = "fora"\n[[method]]\nname = "taylorseer"\nbudgets = []\n'
        "settings = [{ order = 1 }, { order = 2 }]\n[[method]]\nname = 'cache-dit'\n",
    )
    assert [variant.id for variant in plan(config)] == [
        "ddim-10--full",
        "ddim-10--fora--b0.5",
        "ddim-10--fora--b0.25",
        "ddim-10--taylorseer--order-1",
        "ddim-10--taylorseer--order-2",
        "ddim-10--cache-dit--1",
        "ddim-10--cache-dit--2",
        "ddim-10--cache-dit--3",
    ]
    assert CompareConfig.from_plain(to_plain(config)) == config


def test_settings_that_differ_after_the_point_are_variants_of_their_own(tmp_path):
    method = '[[method]]\nname = "smoothcache"\nbudgets = []\nsettings = [{ threshold = 0.08 }, { threshold = 0.18 }]\n'
    assert [variant.id for variant in plan(load(tmp_path, BASE + method))][1:] == [
        "ddim-10--smoothcache--threshold-0.08",
        "ddim-10--smoothcache--threshold-0.18",
    ]


@pytest.mark.parametrize(
    "name", ["embedded-dit", "embedded-t2i", "embedded-uvit", "smoke", "dit-xl-2-256", "uvit-h-2-256"]
)
def test_presets_are_comparisons(name):
    assert name in preset_names()
    config = CompareConfig.preset(name)
    assert len({variant.id for variant in plan(config)}) == len(plan(config)) > len(config.bases)


def test_preset_of_the_embedded_dit_has_what_it_promises():
    config = CompareConfig.preset("embedded-dit")
    assert [(base.solver, base.steps) for base in config.bases] == [("ddim", 50), ("dpmsolver++", 20)]
    assert all(len(base.budgets) >= 3 for base in config.bases)
    names = {method.name for method in config.methods}
    for_dit = {name for name, method in all_methods().items() if method.suits("dit")}
    others = set(BASELINES) - {
        "diffusers-pyramid",
        "diffusers-faster",
    }  # little of a class-conditional DiT's work
    assert names == for_dit | others
    learned_solvers = {"bespoke", "neuralsolver"}  # which no base has a part in
    for method in learned_solvers:
        budgets = [variant.budget for variant in plan(config) if variant.method == method]
        assert budgets == [0.6, 0.5, 0.4, 0.3]
    for base in config.bases:
        variants = [variant for variant in plan(config) if variant.base == base]
        for method in for_dit - {"learned"} - learned_solvers:
            assert sum(variant.method == method for variant in variants) >= 3, method
        for baseline in others - {"diffusers"}:
            assert sum(variant.method == baseline for variant in variants) == 3, baseline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BASE + '[[method]]\nname = "smothcache"\n',
            "unknown method 'smothcache'; did you mean 'smoothcache'",
        ),
        ('metrics = ["rmze"]\n' + BASE, "unknown metric 'rmze'; did you mean 'rmse'"),
        ("imags = 3\n" + BASE, "unknown setting 'imags'; did you mean 'images'"),
        (BASE + "sampler = 1\n", "unknown setting 'sampler'"),
        (BASE.replace("ddim", "dim"), "unknown solver 'dim'; did you mean 'ddim'"),
        ('metrics = ["lpips"]\n' + BASE, "lpips needs the weights of its network and of its heads"),
        (
            'metrics = ["lpips"]\nlpips = { network = "no.pth", heads = "no.pth" }\n' + BASE,
            "there is no file of weights for the network of lpips no.pth; give its path",
        ),
        ('metrics = ["fd"]\n' + BASE, "the metric fd compares with real images; name a folder"),
        (BASE.replace("model", "modle"), "names no model"),
        ("model = [", "is not TOML"),
        ('model = "dit-mini-cifar10"\n', "at least one base"),
        (
            BASE + '[[method]]\nname = "fora"\nbases = ["ddim-20"]\n',
            "unknown base 'ddim-20'; did you mean 'ddim-10'",
        ),
        (BASE + '[[method]]\nname = "cache-dit"\nbudgets = [0.5]\n', "takes settings, not budgets"),
        ("images = 0\n" + BASE, "images must be at least 1, got 0"),
        ("methods = 5\n" + BASE, "methods must be a list, got 5"),
    ],
)
def test_wrong_configurations_are_sentences(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'embeded-dit'; did you mean 'embedded-dit'"):
        CompareConfig.preset("embeded-dit")


def test_a_pipeline_is_compared_as_it_is_loaded(tmp_path):
    pytest.importorskip("diffusers")
    from l2c.compare.hosts import Hosts
    from l2c.testing import tiny_pipeline

    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    model = {"pipeline": str(tmp_path / "pipe"), "conditions": [{"class_labels": [1]}]}
    plain = {
        "model": model,
        "base": [{"steps": 4}, {"steps": 4, "scheduler": "DDIMScheduler,steps_offset=1"}],
    }
    bare = CompareConfig.from_plain(plain)
    assert "load" not in bare.identity()["model"]
    model["load"] = {"scheduler": "UniPCMultistepScheduler,flow_shift=3.0"}
    loaded = CompareConfig.from_plain(plain)
    assert loaded.identity() != bare.identity()
    assert CompareConfig.from_plain(to_plain(loaded)) == loaded
    hosts = Hosts(loaded, "cpu")
    assert hosts.root.target.scheduler.config.flow_shift == 3.0
    assert hosts.base(loaded.bases[1])._scheduler.config.steps_offset == 1
    model["load"] = {"device_map": "cpu"}
    assert Hosts(CompareConfig.from_plain(plain), "cpu").root.target.hf_device_map == "cpu"
    model["load"] = {"dtype": "float16"}
    with pytest.raises(
        ConfigError, match="unknown part to load with a pipeline 'dtype'; choose one of lora, sch"
    ):
        CompareConfig.from_plain(plain)
