"""`meristem grow --build`: a network of one's own, from its function and a safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import own_architectures as own
import pytest
import torch
from command_line import meristem
from safetensors.torch import load_file, save_file

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A module with a network in the working directory, its weights and inputs."""
    monkeypatch.chdir(tmp_path)
    Path("my_module.py").write_text(Path(own.__file__).read_text())
    torch.manual_seed(0)
    net = own.CifarResNet(8, 2).eval()
    save_file(net.state_dict(), "w.safetensors")
    save_file({"x": IMAGES}, "x.safetensors")
    return net


GIVEN = ("--build", "my_module:CifarResNet", "--depths", "num_blocks=2", "--inputs", "x.safetensors")
WEIGHTS = ("--weights", "w.safetensors")


def test_width_and_depth_of_ones_own_network(files):
    targets = ("--method", "lemon", "--size", "width=12", "--size", "num_blocks=3")
    done = meristem("grow", *GIVEN, *WEIGHTS, "--sizes", "width=8", *targets, "OUT")
    assert done.returncode == 0, done.stderr
    assert "CifarResNet(width=12, num_blocks=3) builds it" in done.stdout
    record = json.loads(Path("OUT/meristem.json").read_text())
    assert record["sizes"] == {"width": 12}
    assert record["depths"] == {"num_blocks": 3}
    assert record["certificate"]["holds"]
    grown = own.CifarResNet(12, 3).eval()
    grown.load_state_dict(load_file("OUT/model.safetensors"))
    torch.testing.assert_close(grown(IMAGES), files(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed, said", [
    (("--sizes", "width=9", *WEIGHTS), "conv1.weight of (8, 3, 3, 3), and the network one of (9, 3, 3, 3)"),
    (("--sizes", "width", *WEIGHTS), "--sizes takes name=number"),
    (("--sizes", "channels=8", *WEIGHTS), "does not take these sizes"),
    (("--sizes", "width=8"), "--build needs --sizes"),
    (("--sizes", "width=8", "--weights", "x.safetensors"), "has no bn1.bias"),
    (("--sizes", "width=8", *WEIGHTS, "--build", "my_module:CifarNet"), "did you mean 'CifarResNet'?"),
    (("--sizes", "width=8", *WEIGHTS, "--build", "nowhere:build"), "the module nowhere cannot be imported"),
    (("--sizes", "width=8", *WEIGHTS, "--build", "my_module"), "--build takes module:function"),
])  # fmt: skip
def test_what_does_not_belong_together(files, changed, said):
    done = meristem("grow", *GIVEN, *changed, "OUT")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not Path("OUT").exists()
