"""Which device and which number format to train with, and why; each choice is a sentence for the log.

Knows nothing of models. Imports torch: for the data side only.
"""

from dataclasses import dataclass

import torch

from protocols.trainer import Device, Precision
from tapestryd.errors import ConfigFault, Unavailable, in_a_line


@dataclass(frozen=True, slots=True)
class Choice:
    device: torch.device
    kind: Device
    precision: Precision
    why: str


def choose(device: str, precision: str) -> Choice:
    """`device`: auto | cpu | cuda | cuda:N | mps; `precision`: auto | fp32 | bf16. ROCm is reached as cuda, as in torch.

    Raises ConfigFault for another word, Unavailable for a device that is not there or does not compute.
    """
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = f"auto: {found}" + ("" if found != "cpu" else f", because {_why_no_gpu()}")
    else:
        found, why = device, f"compute.device = {device}"
    kind = found.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps") or (found != kind and not (kind == "cuda" and found[5:].isdigit())):
        raise ConfigFault(f"compute.device = {device!r}: must be auto, cpu, cuda, cuda:N or mps")
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigFault(f"compute.precision = {precision!r}: must be auto, fp32 or bf16")
    if kind == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"compute.device = {device}: {_why_no_gpu()}; see that the driver works, or set compute.device to auto or cpu")
    if kind == "cuda" and found != kind and int(found[5:]) >= torch.cuda.device_count():
        raise Unavailable(f"compute.device = {device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise Unavailable(f"compute.device = {device}: this machine or this torch has no MPS")
    where = torch.device(found)
    try:
        if where.index is not None and kind == "cuda":
            torch.cuda.set_device(where)  # bitsandbytes waits for the current one, which costs memory there
        torch.ones(8, device=where).sum().item()
    except RuntimeError as error:
        raise Unavailable(f"compute.device = {device}: found but does not compute: {in_a_line(error)}") from None
    chosen, reason = _precision(where, precision)
    named = torch.cuda.get_device_name(where) if kind == "cuda" else ""
    return Choice(where, _kind(kind), chosen, f"{why}{' (' + named + ')' if named else ''}; {chosen.name.lower()}, {reason}")


def memory_bytes(device: torch.device) -> int:
    """Memory held for training: on the CUDA device, or this process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def _kind(kind: str) -> Device:
    if kind == "cuda":
        return Device.ROCM if torch.version.hip else Device.CUDA
    return Device.MPS if kind == "mps" else Device.CPU


def _precision(device: torch.device, asked: str) -> tuple[Precision, str]:
    if asked != "auto":
        return (Precision.BF16 if asked == "bf16" else Precision.FP32), f"compute.precision = {asked}"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision.BF16, "auto: this GPU has it"
    return Precision.FP32, "auto: bf16 is faster on newer GPUs only"


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA and ROCm"
    return "torch finds no GPU it can use (no driver or one too old for it, no permission for /dev/nvidia* or /dev/kfd, or no GPU)"
