"""`tapestryd`: the daemon, and `tapestryd demo`, a live swarm on this machine."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tapestryd import __version__, errand
from tapestryd.config import DaemonConfig
from tapestryd.errors import LocalFault
from tapestryd.host import seccomp
from tapestryd.host.box import shut
from tapestryd.host.inherited import inherited
from tapestryd.layers import Loaded, files_at, load_daemon


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tapestryd",
        description="One peer of a Tapestry run. `tapestryd demo` shows a live swarm on this machine instead.",
        epilog="Settings: built-in < profile < file < file.d/*.toml < environment (TAPESTRY_SECTION__KEY) < --set. SIGHUP reads them "
        "anew. Exit: 0 after a clean stop, 2 usage, 75 a temporary fault, 78 a fault of configuration or state.",
    )
    p.add_argument("--config", type=Path, metavar="FILE", help="tapestryd.toml; without it, built-in values and the environment")
    p.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="overrides file and environment; may be repeated"
    )
    p.add_argument("--check", action="store_true", help="check the configuration and exit")
    p.add_argument("--inside", default="", help=argparse.SUPPRESS)  # the warden's word to the network side: the box it has put it in
    p.add_argument("--version", action="version", version=f"tapestryd {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["demo"]:
            from tapestryd import demo

            return demo.main(arguments[1:])
        if arguments and not arguments[0].startswith("-"):
            parser().error(f"{arguments[0]}: this is the daemon; it is asked and directed by `tapestry {arguments[0]}`")
        options = parser().parse_args(arguments)
        flags = {}
        for setting in options.set:
            key, equals, value = setting.partition("=")
            if not equals:
                parser().error(f"--set {setting}: SECTION.KEY=VALUE is expected")
            flags[key] = value
        held = inherited(os.environ, os.getpid())

        def load() -> Loaded[DaemonConfig]:
            files = errand.ask(held["settings"]) if "settings" in held else files_at(options.config)
            return load_daemon(files, os.environ, flags)

        config = load().config
        if options.check:
            print("The configuration is good.")
            return 0
        if config.sandbox.method in ("systemd", "container") or options.inside:
            shut(seccomp.NETWORK)
            from tapestryd import daemon

            daemon.main(load, options.inside or config.sandbox.method, held.get("api"))
            return 0
        from tapestryd import warden

        file = options.config.absolute() if options.config else None
        named = ["--config", str(file)] if file else []
        settings = [word for setting in options.set for word in ("--set", setting)]
        return warden.main(config, [sys.executable, "-P", "-m", "tapestryd", *named, *settings], file)
    except LocalFault as fault:
        print(f"tapestryd: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
