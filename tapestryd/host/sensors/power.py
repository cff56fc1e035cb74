"""Battery and mains, from /sys/class/power_supply (the kernel's Documentation/ABI/testing/sysfs-class-power)."""

from dataclasses import dataclass
from pathlib import Path

from tapestryd.host.sensors.reading import children, text, whole

_BATTERIES = ("Battery", "UPS")
_STANDING = {"Discharging": True, "Charging": False, "Full": False, "Not charging": False}


@dataclass(frozen=True, slots=True)
class Power:
    """`battery`: its charge, 0 to 1, of several their mean. A machine without a battery is not on battery."""

    on_battery: bool | None
    battery: float | None


def read(root: Path) -> Power:
    supplies = children(root / "sys/class/power_supply")
    if supplies is None:
        return Power(None, None)
    online = list[bool]()
    states, charges = list[bool | None](), list[int]()
    for supply in supplies:
        if text(supply / "scope") == "Device" or text(supply / "present") == "0":  # a mouse's battery; an empty slot
            continue
        if text(supply / "type") in _BATTERIES:
            states.append(_STANDING.get(text(supply / "status") or ""))
            charge = whole(supply / "capacity")
            charges += [charge] if charge is not None else []
        elif (plugged := whole(supply / "online")) is not None:
            online.append(plugged > 0)
    battery = sum(charges) / len(charges) / 100 if charges else None
    if not states:
        return Power(False, None)
    if online:
        return Power(not any(online), battery)
    known = [state for state in states if state is not None]
    return Power(any(known) if known else None, battery)
