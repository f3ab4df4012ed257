"""The published networks are what they claim to be, by counting them."""

import json
import subprocess
import sys

import pytest
import torch

from spos.__main__ import main
from spos.convert.architectures import read_architecture
from spos.convert.zoo import ZOO, zoo_architecture
from spos.cost.operations import list_operations
from spos.spaces import build_subnet, space_spec


@pytest.mark.parametrize("name", ZOO)
def test_counts_are_true(name):
    arch = read_architecture(f"zoo:{name}")
    space_spec(arch.space, options=arch.options).check_architecture(arch)
    with torch.device("meta"):
        layers = list_operations(build_subnet(arch), 224)
    assert sum(layer.macs for layer in layers) == ZOO[name].macs == arch.metrics["macs"]
    assert sum(layer.params for layer in layers) == ZOO[name].params == arch.metrics["params"]


# Figures as their authors print them: MACs and parameters in millions, rounded or cut.
@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("megvii", 323, 3.5),
        ("megvii-oneshot-blocks", 319, 3.3),
        ("megvii-oneshot", 328, 3.4),
        ("canyonwind-oneshot", 328, 3.4),
        ("canyonwind-oneshot-plus", 297, 3.7),
        ("canyonwind-oneshot-s-plus", 291, 3.5),
        ("shufflenetv2plus-small", 156, 5.1),
        ("shufflenetv2plus-medium", 222, 5.6),
        ("shufflenetv2plus-large", 360, 6.7),
    ],
)
def test_counts_are_those_printed_by_the_authors(name, macs, params):
    assert round(ZOO[name].macs / 1e6) == macs
    assert int(ZOO[name].params / 1e5) / 10 == params


def test_lliai_networks_count_as_their_table_has_them():
    # thop of December 2019: the classifier twice, and 50 operations an output of the pooling.
    published = [339, 348, 337, 339, 338, 353, 331, 331, 332, 345]
    counted = [ZOO[f"lliai-{n}"].macs + 1_023_000 + 51_200 for n in range(1, 11)]
    assert [round(macs / 1e6) for macs in counted] == published


def test_released_architecture_is_the_file_in_the_repository(request):
    shipped = read_architecture(request.config.rootpath / "architecture_final.json")
    assert zoo_architecture("megvii") == shipped


def test_every_network_says_who_published_what():
    for network in ZOO.values():
        assert network.system and network.source
        assert network.top1 is None or 0.6 < network.top1 < 0.8
    assert len({zoo_architecture(name).id for name in ZOO}) == len(ZOO)


def test_command_lists_them(capsys):
    assert main(["zoo"]) == 0
    table = capsys.readouterr().out
    assert all(f"\n{name} " in table for name in ZOO)
    assert main(["zoo", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["megvii"]["macs"] == 322_918_720
    assert listed.keys() == ZOO.keys()


def test_command_starts_without_torch():
    program = "import sys, spos.commands.zoo; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
