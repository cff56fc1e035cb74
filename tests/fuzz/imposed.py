"""tapestryd, unchanged, with an impostor for its data side: `python -m tests.fuzz.imposed --config …`."""

import sys
from collections.abc import Sequence
from typing import Any

from tapestryd import __main__, warden

_start = warden.start


def _imposed(who: str, box: Any, command: Sequence[str], *rest: Any, **options: Any) -> int:
    words = ["tests.fuzz.channel" if word == "tapestryd.host.steward" else word for word in command]
    return _start(who, box, words, *rest, **options)


if __name__ == "__main__":
    warden.start = _imposed
    sys.exit(__main__.main())
