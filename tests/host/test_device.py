"""Choosing a device on a machine that may or may not have a GPU."""

import pytest
import torch

from protocols.trainer import Device, Precision
from tapestryd.errors import ConfigFault, LocalFault, Unavailable
from tapestryd.host.device import choose, memory_bytes


def test_the_cpu_is_always_there() -> None:
    choice = choose("cpu", "auto")
    assert (choice.device, choice.kind, choice.precision) == (torch.device("cpu"), Device.CPU, Precision.FP32)
    assert choice.why == "compute.device = cpu; fp32, auto: bf16 is faster on newer GPUs only"
    assert choose("cpu", "bf16").precision == Precision.BF16
    assert memory_bytes(choice.device) > 1 << 20


def test_auto_takes_what_there_is_and_says_why() -> None:
    choice = choose("auto", "fp32")
    assert choice.why.startswith(f"auto: {choice.device.type}")
    if choice.kind == Device.CPU:
        assert "because" in choice.why


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps:0", ""])
def test_a_word_that_is_no_device_is_a_sentence(device: str) -> None:
    with pytest.raises(ConfigFault, match="must be auto, cpu"):
        choose(device, "auto")


def test_a_precision_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ConfigFault, match="must be auto, fp32 or bf16"):
        choose("cpu", "fp16")


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_is_not_there_is_a_sentence(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(Unavailable, match=rf"compute\.device = {device}: ") as fault:
        choose(device, "auto")
    assert isinstance(fault.value, LocalFault)
