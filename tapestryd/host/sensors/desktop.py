"""What only a program of the user's own session can know: how long nobody has touched this desktop, and whether the network is metered.

A service of the system sees no keyboard, under Wayland least of all; and neither side of ours has D-Bus in its box. GNOME tells idleness
by its idle monitor, X11 by its screen saver extension; everybody else who tells logind does so as a hint, with the time at which it
last changed. Metered is NetworkManager's word. D-Bus is asked by busctl, which is part of systemd: milliseconds in a process of its own.
"""

import ctypes
import ctypes.util
import subprocess
from typing import Any

_PATIENCE_S = 5.0
_MONITOR = ("org.gnome.Mutter.IdleMonitor", "/org/gnome/Mutter/IdleMonitor/Core", "org.gnome.Mutter.IdleMonitor", "GetIdletime")
_SESSION = ("org.freedesktop.login1", "/org/freedesktop/login1/session/auto", "org.freedesktop.login1.Session")
_NETWORK = ("org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered")
_METERED = {"1": True, "2": False, "3": True, "4": False}
"""NMMetered: yes, no, and both as NetworkManager guesses from the kind of network, which it advises to follow; 0 is unknown."""


class _Info(ctypes.Structure):
    """XScreenSaverInfo (Xss(3))."""

    _fields_ = (
        ("window", ctypes.c_ulong), ("state", ctypes.c_int), ("kind", ctypes.c_int),
        ("til_or_since", ctypes.c_ulong), ("idle_ms", ctypes.c_ulong), ("event_mask", ctypes.c_ulong),
    )  # fmt: skip


class ScreenSaver:
    """X11's. Not to be believed of an X server within Wayland, which sees only what its own windows get."""

    def __init__(self, display: str) -> None:
        """`display`: as $DISPLAY has it. Raises OSError without the libraries, the server, or its extension."""
        x11, xss = (ctypes.util.find_library(name) for name in ("X11", "Xss"))
        if x11 is None or xss is None:
            raise OSError("libX11 and libXss are not installed")
        self._x11, self._xss = ctypes.CDLL(x11), ctypes.CDLL(xss)
        self._x11.XOpenDisplay.restype = ctypes.c_void_p
        self._x11.XDefaultRootWindow.restype = ctypes.c_ulong
        self._xss.XScreenSaverAllocInfo.restype = ctypes.POINTER(_Info)
        found = self._x11.XOpenDisplay(display.encode())
        if not found:
            raise OSError(f"no X server answers on {display}")
        self._display = ctypes.c_void_p(found)
        self._root = ctypes.c_ulong(self._x11.XDefaultRootWindow(self._display))
        self._info: Any = self._xss.XScreenSaverAllocInfo()
        if self.idle_s() is None:
            raise OSError(f"the X server on {display} has no screen saver extension")

    def idle_s(self) -> float | None:
        if not self._xss.XScreenSaverQueryInfo(self._display, self._root, self._info):
            return None
        return float(self._info.contents.idle_ms) / 1000


def gnome_idle_s(busctl: str = "busctl") -> float | None:
    match _ask(busctl, "--user", "call", *_MONITOR):
        case ["t", idle_ms] if idle_ms.isdigit():
            return int(idle_ms) / 1000
    return None


def logind_idle_s(now_s: float, busctl: str = "busctl") -> float | None:
    """`now_s`: Unix time. None also where nobody has ever given a hint: a session that is never called idle would never be left alone."""
    match _ask(busctl, "--system", "get-property", *_SESSION, "IdleHint", "IdleSinceHint"):
        case ["b", idle, "t", since_us] if since_us.isdigit() and since_us != "0":
            return max(0.0, now_s - int(since_us) / 1e6) if idle == "true" else 0.0
    return None


def metered(busctl: str = "busctl") -> bool | None:
    match _ask(busctl, "--system", "get-property", *_NETWORK):
        case ["u", said]:
            return _METERED.get(said)
    return None


def _ask(busctl: str, *words: str) -> list[str]:
    """What it answered, word by word; nothing without busctl, D-Bus, or whom it asks."""
    try:
        done = subprocess.run(
            [busctl, "--no-pager", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []
