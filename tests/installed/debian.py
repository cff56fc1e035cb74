"""A whole Debian in a folder, made by debootstrap and booted in namespaces of its own. Must be root."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.isolation import machine

_WANTED = "systemd,systemd-sysv,dbus,python3,iproute2,procps"


def why_not() -> str:
    """A sentence, where there can be none; "" where there can."""
    if reason := machine.why_not():
        return reason
    if missing := [name for name in ("debootstrap", "dpkg-deb") if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed"
    return "" if _mirror() else "no mirror of Debian's is configured here"


def _mirror() -> str:
    """Where this machine's own packages come from."""
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(file.read_text() for file in lists if file.is_file())
    found = re.search(r"^(?:URIs:\s*|deb (?:\[[^]]*\] )?)(\S+/debian/?)(?:\s|$)", text, re.M)
    return found[1] if found else ""


class Debian(machine.Machine):
    """`root`: its files. `namespace`: the name of its network, for `ip netns exec`, while it runs."""

    @classmethod
    def bare(cls, folder: Path) -> "Debian":
        """Nothing but the base system; a copy of the one in $TAPESTRY_DEBIAN, which is made there if it is not."""
        folder.mkdir()
        made = cls(folder)
        kept = Path(os.environ.get("TAPESTRY_DEBIAN", folder / "bare"))
        if not (kept / "usr").exists():
            release = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
            assert release is not None
            words = ["debootstrap", "--variant=minbase", f"--include={_WANTED}", release[1], str(kept), _mirror()]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cp", "-a", f"{kept}/.", str(made.root)], check=True)
        return made

    @property
    def namespace(self) -> str:
        return f"tapdeb{os.getpid()}"

    def _boot(self) -> list[str]:
        return ["sh", str(Path(__file__).with_name("boot.sh")), str(self.root)]

    def _furnish(self) -> None:
        """The package will."""

    def start(self) -> None:
        super().start()
        subprocess.run(["ip", "netns", "attach", self.namespace, str(self.first)], check=True)

    def stop(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.namespace], check=False)
        super().stop()
