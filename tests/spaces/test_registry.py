"""Search spaces by name: what is known, what may be imported, which options reach a constructor."""

import pytest
from torch import nn

from spos.architecture import Architecture
from spos.errors import ArchitectureError, ConfigError
from spos.spaces import SPACES, build_space, build_subnet, load_space_class, space_spec
from spos.spaces.nni_pieces import LayerChoice, ModelSpace
from spos.spaces.shufflenet import ShuffleNetV2Space

OWN_SPACE = """
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

class Parent(ModelSpace):
    def __init__(self, num_classes=2, width=4, affine=True):
        super().__init__()
        choices = {"small": nn.Conv2d(3, width, 1), "large": nn.Conv2d(3, width, 3, padding=1)}
        self.conv = LayerChoice(choices, label="conv")
        self.norm = nn.BatchNorm2d(width, affine=affine)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))

class Child(Parent):
    pass

class Other(nn.Module):
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_space_for_test.py").write_text(OWN_SPACE)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(SPACES)
    yield "own_space_for_test"
    SPACES.clear()
    SPACES.update(before)


def test_space_of_the_paper_is_first():
    assert next(iter(SPACES)) == "shufflenetv2"
    assert load_space_class("shufflenetv2") is ShuffleNetV2Space


def test_spec_lists_layers_in_network_order():
    spec = space_spec("shufflenetv2", options={"image_size": 32, "num_classes": 10})
    assert list(spec.choices) == [f"layer_{number}" for number in range(1, 21)]
    assert set(spec.choices.values()) == {("k3", "k5", "k7", "xcep")}
    assert spec.options == {"image_size": 32, "num_classes": 10}
    assert spec.num_architectures == 4**20


def test_unknown_space_names_the_known_ones():
    with pytest.raises(ConfigError, match="no search space 'resnet'; there are shufflenetv2"):
        load_space_class("resnet", allow_import=True)


def test_file_alone_may_not_import_code(own_module):
    name = f"{own_module}:Parent"
    arch = Architecture(name, {}, {"conv": "small"})
    for use in (
        lambda: load_space_class(name),
        lambda: build_subnet(arch),
        lambda: space_spec(name, options={}),
    ):
        with pytest.raises(ConfigError, match=f"command line: --space {name}"):
            use()


@pytest.mark.parametrize("class_name", ["Parent", "Child"])
def test_own_space_works_once_named_on_the_command_line(own_module, class_name):
    name = f"{own_module}:{class_name}"
    load_space_class(name, allow_import=True)
    options = {"image_size": 8, "num_classes": 3, "width": 6}
    spec = space_spec(name, options=options)
    assert spec.choices == {"conv": ("small", "large")}
    subnet = build_subnet(spec.architecture({"conv": "large"}), affine=False)
    assert [tuple(p.shape) for p in subnet.parameters()] == [(6, 3, 3, 3), (6,), (3, 6), (3,)]
    assert isinstance(subnet.conv, nn.Conv2d)


def test_own_space_refuses_options_it_does_not_take(own_module):
    load_space_class(f"{own_module}:Child", allow_import=True)
    with pytest.raises(ConfigError, match="no option 'depth'; it has image_size, num_classes, w"):
        build_space(f"{own_module}:Child", options={"depth": 3}, affine=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_space_for_test:Missing", "cannot be imported"),
        ("no_such_module_of_ours:Space", "cannot be imported"),
        (":Space", "cannot be imported"),
        (".relative:Space", "cannot be imported"),
        ("own_space_for_test:Other", "not a subclass of"),
        ("own_space_for_test:torch", "not a subclass of"),
    ],
)
def test_wrong_class_names_are_refused(own_module, name, message):
    with pytest.raises(ConfigError, match=message):
        load_space_class(name, allow_import=True)
    assert name not in SPACES


def test_hub_space_takes_classes_as_labels(own_module):
    name = "nni.nas.hub.pytorch.proxylessnas:ProxylessNAS"
    load_space_class(name, allow_import=True)
    space = build_space(name, options={"image_size": 64, "num_classes": 7}, affine=False)
    assert space.classifier.out_features == 7


def test_subnet_refuses_choices_of_another_space():
    choices = {f"layer_{number}": "k3" for number in range(1, 20)}
    with pytest.raises(ArchitectureError, match="missing: \\['layer_20'\\]"):
        build_subnet(Architecture("shufflenetv2", {}, choices))


def test_values_without_a_name_are_named_by_their_text(own_module):
    SPACES["floats"] = _Floats
    assert space_spec("floats", options={}).choices == {"ratio": ("1.5", "2.0"), "block": (0, 1)}
    assert build_subnet(Architecture("floats", {}, {"ratio": "2.0", "block": 1})).conv.p == 2.0


class _Identity(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p


class _Floats(ModelSpace):
    """Its choice of a number decides which module is built, which NNI tells only when fixed."""

    def __init__(self):
        import nni
        from nni.mutable import ensure_frozen

        super().__init__()
        ratio = self.add_mutable(nni.choice("ratio", [1.5, 2.0]))
        choices = [_Identity(0), _Identity(ensure_frozen(ratio))]
        self.conv = LayerChoice(choices, label="block")
