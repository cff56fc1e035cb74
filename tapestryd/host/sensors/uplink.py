"""Whether the network costs by the byte: NetworkManager's word, by way of busctl (part of systemd).

To be asked on the network side only: it is its uplink, and the data side's box has neither D-Bus nor a network.
"""

import asyncio
from contextlib import suppress

_PROPERTY = ("org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered")
_SAID = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}
"""NMMetered: yes, no, and both as NetworkManager guesses from the kind of network, which it advises to follow; 0 is unknown."""

_PATIENCE_S = 5.0


async def metered(busctl: str = "busctl") -> bool | None:
    """None: there is no NetworkManager, no D-Bus, or no answer in time. A few milliseconds in a process of its own."""
    try:
        process = await asyncio.create_subprocess_exec(
            busctl, "--system", "--no-pager", "get-property", *_PROPERTY,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _PATIENCE_S)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _SAID.get(said.decode(errors="replace").strip())
