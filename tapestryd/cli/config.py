"""`tapestry config`: this machine's choices, shown with where each comes from, checked, and changed in their files.

Whatever is written was checked as a whole before; the daemon takes it up with `tapestry reload`, or is started again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocols.control import SCHEMA, Exit
from tapestryd.cli.schema import schema_of
from tapestryd.cli.sides import Side, data_side, network_side, of_key, sides, takes_config
from tapestryd.cli.verbs import Verbs, show
from tapestryd.client import Client, Doc
from tapestryd.errors import ConfigFault, LocalFault, NotAllowed
from tapestryd.layers import Loaded
from tapestryd.profiles import PROFILES
from tapestryd.settings import from_text, written


def add(verbs: Verbs) -> None:
    some = verbs.noun("config", "show, check and change this machine's settings", "The settings of both sides, as their files have them.")

    def verb(where: Verbs, name: str, does: Any, text: str, *, trainer: str = "") -> argparse.ArgumentParser:
        one = where.add(name, does, text)
        takes_config(one)
        if trainer:
            one.add_argument("--trainer", action="store_true", help=trainer)
        return one

    one = verb(some, "show", shown, "every setting, as a start would have it now")
    one.add_argument("--origin", action="store_true", help="and where each value comes from")
    one.add_argument("--running", action="store_true", help="as the daemon that runs has it, of its own side")
    both = "of the data side's file, where both have such a key"
    verb(some, "get", get, "one value", trainer=both).add_argument("key", metavar="KEY", help="section.key")
    one = verb(some, "set", change, "write one value to its file, if the whole is good then", trainer=both)
    one.add_argument("key", metavar="KEY", help="section.key")
    one.add_argument("value", metavar="VALUE", help="as in the environment: lists with commas, or in JSON")
    verb(some, "unset", change, "take one value out of its file again", trainer=both).add_argument("key", metavar="KEY", help="section.key")
    one = verb(some, "check", check, "find every fault of the files, without starting anything", trainer="FILE is the data side's")
    one.add_argument("file", nargs="?", type=Path, metavar="FILE", help="this file instead of those in use")
    verb(some, "edit", edit, "open the file in an editor, and keep what is good", trainer="the data side's file")
    verb(some, "diff", diff, "where the files say something else than the daemon that runs has taken up")
    verb(some, "schema", schema, "what a file may hold, as JSON Schema", trainer="the data side's file")
    profiles = some.noun("profile", "kinds of machines", "Values for a kind of machine, beneath all that is set otherwise.")
    verb(profiles, "list", profile_list, "the profiles, and what each says")
    one = verb(profiles, "apply", profile_apply, "name a profile in both files")
    one.add_argument("name", choices=tuple(PROFILES), metavar="NAME", help=", ".join(PROFILES))
    one.add_argument("--dry-run", action="store_true", help="only tell what would change")


def shown(options: argparse.Namespace, client: Client) -> int:
    if options.running:
        found = client.ask("GET", "/v1/config")["settings"]
        listed = [{"side": "tapestryd", "key": one["key"], "value": one["value"], "origin": one["origin"]} for one in found]
    else:
        listed = [one for side in _that_are_there(sides(options, client)) for one in _listed(side)]

    def text(document: Doc) -> str:
        lines, width = list[str](), min(60, max(len(_line(one)) for one in listed))
        for number, one in enumerate(listed):
            if not number or one["side"] != listed[number - 1]["side"]:
                lines.append(f"# {one['side']}")
            lines.append(f"{_line(one).ljust(width)}  # {one['origin']}" if options.origin else _line(one))
        return "\n".join(lines) + "\n"

    return show(options, {"schema": SCHEMA, "settings": listed}, text)


def _that_are_there(both: Sequence[Side]) -> list[Side]:
    """The data side's only if this user may see its file; a machine that trains nothing has none."""
    found = []
    for side in both:
        try:
            side.loaded()
            found.append(side)
        except NotAllowed as fault:
            if side.name == "tapestryd":
                raise
            print(f"Without the data side: {fault}", file=sys.stderr)
        except ConfigFault:
            if side.name == "tapestryd" or side.path.exists():
                raise
    return found


def _listed(side: Side) -> list[Doc]:
    loaded = side.loaded()
    return [
        {"side": side.name, "key": key, "value": written(setting.kind, loaded.value(key)), "origin": loaded.origins[key]}
        for key, setting in side.settings.items()
    ]


def _line(one: Mapping[str, Any]) -> str:
    return f"{one['key']} = {json.dumps(one['value'], ensure_ascii=False)}"


def get(options: argparse.Namespace, client: Client) -> int:
    side = of_key(sides(options, client), options.key, trainer=options.trainer)
    loaded = side.loaded()
    value = written(side.settings[options.key].kind, loaded.value(options.key))
    document = {"schema": SCHEMA, "side": side.name, "key": options.key, "value": value, "origin": loaded.origins[options.key]}
    return show(options, document, lambda _: f"{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n")


def change(options: argparse.Namespace, client: Client) -> int:
    from tapestryd.editing import with_value, without  # only who writes waits for the library

    key = options.key
    side = of_key(sides(options, client), key, trainer=options.trainer)
    kind, text = side.settings[key].kind, side.text()
    new = with_value(text, key, from_text(kind, options.value)) if "value" in options else without(text, key)
    before, after = side.loaded(), side.loaded(new.encode())
    _write(side, new)
    was, now = (json.dumps(written(kind, loaded.value(key)), ensure_ascii=False) for loaded in (before, after))
    said = f"{key} = {now}" + (f" (was {was})" if was != now else ", as before") + f", by {after.origins[key]}."
    if "value" in options and after.origins[key] != str(side.path):
        said = f"{key} is written to {side.path}, but {after.origins[key]} has the last word: {now}."
    return show(options, {"schema": SCHEMA, "said": f"{said} {_takes_effect(side, key)}"}, lambda document: f"{document['said']}\n")


def _takes_effect(side: Side, key: str) -> str:
    from tapestryd.reloading import LIVE

    if side.name == "tapestryd" and key in LIVE:
        return "`tapestry reload` takes it up."
    return f"It takes effect with: {side.restart}."


def _write(side: Side, text: str) -> None:
    from tapestryd.host.files import write

    try:
        write(side.path.resolve(), text.encode(), like=side.path.stat())  # a link stays one
    except PermissionError:
        raise NotAllowed(f"{side.path}: only root may change it; use sudo.") from None


def check(options: argparse.Namespace, client: Client) -> int:
    checked = _that_are_there(sides(options, client)) if options.file is None else [_named(options, client)]
    good = [str(file) for side in checked for file in side.loaded().files]
    return show(options, {"schema": SCHEMA, "good": good}, lambda _: "".join(f"{file}: good.\n" for file in good))


def _named(options: argparse.Namespace, client: Client) -> Side:
    if options.trainer or options.file.name.startswith("trainer"):
        return data_side(options.file)
    return network_side(argparse.Namespace(config=options.file), client)


def edit(options: argparse.Namespace, client: Client) -> int:
    side = sides(options, client)[1] if options.trainer else network_side(options, client)
    before = side.text().encode()
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, side.path.name)
        draft.write_bytes(before)
        while True:
            try:
                status = subprocess.call([*command, str(draft)])
            except OSError as error:
                raise LocalFault(f"{command[0]}: {error.strerror}; name an editor in $EDITOR.") from None
            new = draft.read_bytes()
            if status or new == before:
                print("Nothing was changed." if not status else f"{command[0]} ended with {status}; nothing was changed.")
                return Exit.FAILED if status else Exit.OK
            try:
                side.loaded(new)
                break
            except ConfigFault as fault:
                print(fault, file=sys.stderr)
                if not sys.stdin.isatty() or input("Edit again? [Y/n] ").strip().lower().startswith("n"):
                    raise LocalFault(f"{side.path} is as it was.") from None
    _write(side, new.decode())
    how = "`tapestry reload` takes up what can be." if side.name == "tapestryd" else f"It takes effect with: {side.restart}."
    print(f"{side.path} is written. {how}")
    return Exit.OK


def diff(options: argparse.Namespace, client: Client) -> int:
    changes = differences(client.ask("GET", "/v1/config")["settings"], network_side(options, client))

    def text(document: Doc) -> str:
        lines = [
            f"{one['key']}: {json.dumps(one['running'])} → {json.dumps(one['files'])}  ({'reload' if one['live'] else 'restart'})"
            for one in changes
        ]
        return "\n".join(lines or ["The daemon runs by its files."]) + "\n"

    return show(options, {"schema": SCHEMA, "changes": changes}, text)


def differences(running: Sequence[Doc], side: Side) -> list[Doc]:
    """Where the files say something else than what runs. What the daemon got by its environment and command line is not in the
    files, and stays."""
    loaded, changes = side.loaded(), []
    for one in running:
        value = written(side.settings[one["key"]].kind, loaded.value(one["key"])) if one["key"] in side.settings else one["value"]
        if one["value"] != value and not one["origin"].startswith(("environment", "command line")):
            changes.append({"key": one["key"], "running": one["value"], "files": value, "live": one["live"]})
    return changes


def schema(options: argparse.Namespace, client: Client) -> int:
    side = sides(options, client)[1] if options.trainer else network_side(options, client)
    print(json.dumps(schema_of(side.settings), ensure_ascii=False, indent=2))
    return Exit.OK


def profile_list(options: argparse.Namespace, client: Client) -> int:
    listed = [{"name": name, "what": one.what, "tapestryd": one.daemon, "trainer": one.trainer} for name, one in PROFILES.items()]

    def text(document: Doc) -> str:
        lines = []
        for name, one in PROFILES.items():
            lines.append(f"{name}: {one.what}")
            lines += [f"    {_line({'key': key, 'value': value})}" for values in (one.daemon, one.trainer) for key, value in values.items()]
        return "\n".join(lines) + "\n"

    return show(options, {"schema": SCHEMA, "profiles": listed}, text)


def profile_apply(options: argparse.Namespace, client: Client) -> int:
    from tapestryd.editing import with_value

    there = _that_are_there(sides(options, client))
    plans = [(side, with_value(side.text(), "node.profile", options.name)) for side in there]
    changes, stays = list[Doc](), list[Doc]()
    for side, text in plans:
        before, after = side.loaded(), side.loaded(text.encode())
        changes += [{"side": side.name, **one} for one in _changes(side, before, after)]
        stays += [{"side": side.name, **one} for one in _stays(side, after, options.name)]
    if not options.dry_run:
        for side, text in plans:
            _write(side, text)

    def said(document: Doc) -> str:
        lines = [f"{one['key']}: {json.dumps(one['before'])} → {json.dumps(one['after'])}" for one in changes]
        lines += [f"{one['key']}: {json.dumps(one['value'])} stays, by {one['origin']}" for one in stays]
        how = " and ".join(dict.fromkeys(side.restart for side in there))
        return "\n".join([*lines, "Nothing is written." if options.dry_run else f"It takes effect with: {how}."]) + "\n"

    return show(options, {"schema": SCHEMA, "written": not options.dry_run, "changes": changes, "stays": stays}, said)


def _changes(side: Side, before: Loaded[Any], after: Loaded[Any]) -> list[Doc]:
    return [
        {"key": key, "before": written(setting.kind, before.value(key)), "after": written(setting.kind, after.value(key))}
        for key, setting in side.settings.items()
        if before.value(key) != after.value(key)
    ]


def _stays(side: Side, after: Loaded[Any], profile: str) -> list[Doc]:
    """Of what the profile says, what something else has the last word in."""
    values = PROFILES[profile].daemon if side.name == "tapestryd" else PROFILES[profile].trainer
    return [
        {"key": key, "value": written(side.settings[key].kind, after.value(key)), "origin": after.origins[key]}
        for key in values
        if after.origins[key] != f"profile {profile}"
    ]
