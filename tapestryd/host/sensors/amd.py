"""AMD's GPUs, from the amdgpu driver's files: /sys/class/drm/card*/device, its hwmon, and /sys/class/kfd for who computes on them.

(The kernel's Documentation/gpu/amdgpu/driver-misc.rst and thermal.rst; kfd_topology.c and kfd_process.c for the rest.)
"""

from collections.abc import Collection
from pathlib import Path

from tapestryd.host.policy import Gpu
from tapestryd.host.sensors.reading import children, text, whole

_VENDOR = "0x1002"
_NAME = "AMD GPU"
_JUNCTION = "junction"
"""The hottest place of the chip; cards before 2018 have only the sensor at its edge."""


def read(root: Path, ours: Collection[int]) -> tuple[Gpu, ...]:
    """One for each card of AMD's, by PCI address. `ours`: our own processes."""
    nodes = _nodes(root)
    found = []
    for card in children(root / "sys/class/drm") or ():
        device = card / "device"
        if not card.name.removeprefix("card").isdigit() or text(device / "vendor") != _VENDOR:
            continue
        address = _address(device)
        if text(device / "power/runtime_status") == "suspended":  # nobody is on it, and to ask more would wake it up
            found.append(Gpu(others=0, others_util=0.0, id=f"pci:{address}", name=_NAME))
            continue
        busy = whole(device / "gpu_busy_percent")
        users = _users(root, nodes.get(address))
        others = None if users is None else len(users - set(ours))
        share = None if busy is None or users is None or users & set(ours) else busy / 100
        power = _sensor(device, "power1_average") or _sensor(device, "power1_input")
        found.append(
            Gpu(
                id=f"pci:{address}",
                name=text(device / "product_name") or _NAME,
                temperature_c=_temperature(device),
                util=None if busy is None else busy / 100,
                memory_used_bytes=whole(device / "mem_info_vram_used"),
                memory_bytes=whole(device / "mem_info_vram_total"),
                power_w=None if power is None else power / 1e6,
                others=others,
                others_util=0.0 if others == 0 else share,
            )
        )
    return tuple(found)


def _address(device: Path) -> str:
    """0000:65:00.0"""
    for line in (text(device / "uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PCI_SLOT_NAME":
            return value
    return ""


def _sensor(device: Path, name: str) -> int | None:
    for folder in children(device / "hwmon") or ():
        value = whole(folder / name)
        if value is not None:
            return value
    return None


def _temperature(device: Path) -> float | None:
    """Of the junction, else of the edge."""
    for folder in children(device / "hwmon") or ():
        labels = {text(folder / f"temp{number}_label"): folder / f"temp{number}_input" for number in (1, 2, 3)}
        value = whole(labels.get(_JUNCTION, folder / "temp1_input"))
        if value is not None:
            return value / 1000
    return None


def _nodes(root: Path) -> dict[str, int]:
    """PCI address → the number by which /sys/class/kfd knows the card."""
    found = {}
    for node in children(root / "sys/class/kfd/kfd/topology/nodes") or ():
        number = whole(node / "gpu_id")
        properties = dict(line.split(" ", 1) for line in (text(node / "properties") or "").splitlines() if " " in line)
        place, domain = properties.get("location_id", ""), properties.get("domain", "0")
        if number and place.isdigit() and domain.isdigit():
            bus, slot = int(place) >> 8, int(place) & 0xFF
            found[f"{int(domain):04x}:{bus:02x}:{slot >> 3:02x}.{slot & 7}"] = number
    return found


def _users(root: Path, node: int | None) -> set[int] | None:
    """Who has memory on the card to compute with; None: not known."""
    processes = children(root / "sys/class/kfd/kfd/proc")
    if node is None or processes is None:
        return None
    return {int(process.name) for process in processes if process.name.isdigit() and (whole(process / f"vram_{node}") or 0) > 0}
