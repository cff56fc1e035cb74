"""Run rules: text → canonical → run_id, pinned; every fault named; invites."""

import json
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import digest, dumps
from protocols.refusal import Reason, Refused
from protocols.rules import Invite, Model, RunRules
from tests.people import CAST, MEMBERS, RULES, RUN, Person, rules

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "rules.json").read_text())
PEER = next(iter(CAST))


def test_reads_and_writes_the_vector() -> None:
    read = RunRules.from_toml(VECTOR["toml"])
    assert read == RULES
    assert read.canonical().decode() == VECTOR["canonical"]
    assert (read.run_id, read.prefix) == (VECTOR["run_id"], VECTOR["prefix"])
    assert read.to_toml() == VECTOR["toml"]
    assert RunRules.from_canonical(VECTOR["canonical"].encode(), VECTOR["run_id"]) == read
    assert digest(VECTOR["canonical"].encode()) == RUN
    assert [list(bound) for bound in read.layout().bounds] == VECTOR["fragments"]
    assert read.layout().digest() == VECTOR["layout"]


def test_the_order_and_the_comments_of_a_file_do_not_matter() -> None:
    tables = re.split(r"\n(?=\[)", RULES.to_toml())
    shuffled = "\n# mine\n".join([tables[0], *reversed(tables[1:])])
    assert RunRules.from_toml(shuffled).run_id == RUN


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_any_text_survives_toml(name: str, note: str) -> None:
    config = json.dumps({"model_type": "none", "note": note}, ensure_ascii=False)
    made = replace(RULES, model=replace(RULES.model, config=config, tensors=(name + " 3", "b\x7f\x00\n 4")))
    if name == "b\x7f\x00\n":
        return
    assert RunRules.from_toml(made.to_toml()) == made
    assert all(line.isprintable() for line in made.to_toml().split("\n"))


def test_rules_from_a_peer_are_of_the_hash_that_was_asked_for() -> None:
    with pytest.raises(Refused) as refused:
        RunRules.from_canonical(RULES.canonical(), "00" * 32)
    assert refused.value.reason is Reason.OTHER_RUN
    spaced = json.dumps(RULES.to_json()).encode()
    with pytest.raises(Refused) as refused:
        RunRules.from_canonical(spaced, digest(spaced))
    assert refused.value.reason is Reason.MALFORMED
    with pytest.raises(Refused) as refused:
        RunRules.from_canonical(b" " * (limits.RULES_BYTES + 1), RUN)
    assert refused.value.reason is Reason.TOO_LARGE


def _with(key: str, value: object) -> dict[str, object]:
    body = json.loads(RULES.canonical())
    table, names = body, key.split(".")
    for name in names[:-1]:
        table = table[name]
    table[names[-1]] = value
    return dict(body)


BAD = {
    "treaty": [0, 2, "1", True],
    "name": ["", "x" * 65, "a\nb", "\x1b[31m", 7],
    "membership": ["closed", "", 1],
    "members": [[PEER], "x", [1], {}],
    "model": ["x", 1, []],
    "model.config": ["", "{", "[]", "{}", '{"model_type":1}', '{"model_type":""}', "[" * 100_000, 1],
    "model.tensors": [[], ["a"], ["a 3"], ["a 3", "a 4"], ["a 3", 4], "a 3", ["a 3", "b 0"]],
    "model.genesis": ["", "00" * 31, "GG" * 32, 0],
    "tokenizer.kind": ["", "hub", 1],
    "tokenizer.digest": ["00" * 32, "x", 1],
    "schedule.origin_ms": [-1, (1 << 53) + 1, "0", 1.5],
    "schedule.train_ms": [499, 7 * 24 * 3_600_000 + 1, 0, -1, True],
    "schedule.average_ms": [999, 24 * 3_600_000 + 1],
    "inner.optimizer": ["sgd", ""],
    "inner.lr": ["-0.1", "10.1", "x", "", "NaN", "Infinity", "1_0", " 1", "1 ", "0x1", "٣", "1,5", "1" * 400, 0.1],
    "inner.beta1": ["1", "-1"],
    "inner.beta2": ["1", "sNaN"],
    "inner.weight_decay": ["11"],
    "inner.clip_norm": ["0", "1000001"],
    "inner.final_ratio": ["1.01"],
    "inner.sequences": [0, 65_537],
    "inner.tokens": [1, (1 << 20) + 1],
    "inner.warmup_rounds": [-1, (1 << 40) + 1],
    "inner.decay_rounds": [0, (1 << 40) + 1],
    "outer.lr": ["10.5", "-1"],
    "outer.momentum": ["1", "0.99991"],
    "codec.up": [2, 16, 0],
    "codec.down": [2, 16],
    "codec.block": [0, 63, 32, 2048],
    "averaging.fragments": [0, 5, 65],
    "averaging.aggregation": ["krum", "", 1],
    "averaging.weighting": ["tokens", ""],
    "averaging.min_peers": [1, 0, limits.ROSTER_MEMBERS + 1],
    "averaging.coverage": ["1.1", "-0.5", "x"],
}  # fmt: skip

GOOD = {
    "name": ["x" * 64, "織物"], "schedule.origin_ms": [0, 1 << 53], "schedule.train_ms": [500, 7 * 24 * 3_600_000],
    "schedule.average_ms": [1000, 24 * 3_600_000], "inner.lr": ["0", "10", "4e-4", "0.000001", "1E-10"], "inner.beta1": ["0", "0.99999"],
    "inner.clip_norm": ["0.000001", "1000000"], "inner.sequences": [1, 65_536], "inner.tokens": [2, 1 << 20],
    "inner.warmup_rounds": [0, 1 << 40], "inner.decay_rounds": [1, 1 << 40], "outer.momentum": ["0", "0.9999"],
    "codec.up": [4, 8, 32], "codec.down": [4, 8, 32], "codec.block": [64, 1024],
    "averaging.fragments": [1, 4], "averaging.min_peers": [2, 256],
    "averaging.aggregation": ["clipped", "mean", "trimmed", "median"], "averaging.weighting": ["uniform", "steps"],
    "averaging.coverage": ["0", "1"],
}  # fmt: skip


def _keys(value: object, path: str = "") -> list[str]:
    found = []
    for field in fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        found += [path + field.name] if not is_dataclass(item) else _keys(item, f"{path}{field.name}.")
    return found


def test_every_field_is_tried() -> None:
    assert set(BAD) == {*_keys(RULES), "model"}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BAD.items() for value in values], ids=lambda part: str(part)[:24]
)
def test_each_field_has_its_bounds(key: str, value: object) -> None:
    with pytest.raises(Refused) as refused:
        RunRules.from_json(_with(key, value))
    assert refused.value.reason is Reason.MALFORMED
    assert key in refused.value.detail
    assert not [other for other in BAD if other not in key and f"{other} = " in refused.value.detail]  # it alone is at fault


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in GOOD.items() for value in values], ids=lambda part: str(part)[:24]
)
def test_the_bounds_themselves_are_within(key: str, value: object) -> None:
    made = RunRules.from_json(_with(key, value))
    assert RunRules.from_toml(made.to_toml()) == made


def test_every_fault_is_reported_together() -> None:
    body = json.loads(RULES.canonical())
    body["inner"]["lr"], body["codec"]["up"], body["averaging"]["min_peers"], body["name"] = "fast", 3, 0, ""
    with pytest.raises(Refused) as refused:
        RunRules.from_json(body)
    for said in ("inner.lr = 'fast'", "codec.up = 3", "averaging.min_peers = 0", "name = ''"):
        assert said in refused.value.detail
    body = json.loads(RULES.canonical())
    del body["codec"]["up"], body["outer"]
    body["colour"], body["inner"]["colour"], body["inner"]["lr"], body["schedule"] = "blue", 1, 0.5, 4
    with pytest.raises(Refused) as refused:
        RunRules.from_json(body)
    for said in (
        "codec.up: missing",
        "outer: missing",
        "colour = 'blue': no such key",
        "inner.colour",
        "inner.lr = '0.5'",
        "schedule = '4'",
    ):
        assert said in refused.value.detail


@pytest.mark.parametrize("text", ["", "[", "a = ", "name = 1979-05-27", '"\\ud800" = 1', "a = 1\na = 2", "x = 1e400", "\0"])
def test_text_that_is_no_rules_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        RunRules.from_toml(text)


@settings(max_examples=50)
@given(
    st.recursive(
        st.text(max_size=4) | st.integers() | st.booleans() | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "model", "config", "tensors", "inner", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_any_value_in_any_place_is_refused_or_rules(value: object) -> None:
    for key in ("name", "model", "model.tensors", "inner", "inner.lr", "schedule.train_ms", "averaging"):
        try:
            RunRules.from_json(_with(key, value))
        except Refused:
            continue


def test_rules_that_no_peer_would_accept_are_refused_at_founding() -> None:
    tensors = tuple(f"{'x' * 200}{i} 3" for i in range(6000))
    with pytest.raises(Refused, match="the rules take"):
        RunRules.from_json(replace(RULES, model=Model(RULES.model.config, tensors, RULES.model.genesis)).to_json())


IDS = tuple(member.peer for member in MEMBERS)


def _roster(members: object) -> dict[str, object]:
    return {**_with("membership", "roster"), "members": members}


@pytest.mark.parametrize("members", [IDS, IDS[:1], tuple(sorted(Person(str(number)).peer for number in range(limits.MEMBERS)))])
def test_a_roster_of_members_comes_back(members: tuple[str, ...]) -> None:
    made = RunRules.from_json(_roster(list(members)))
    assert made.members == members
    assert RunRules.from_toml(made.to_toml()) == made
    assert RunRules.from_canonical(made.canonical(), made.run_id) == made
    assert made.run_id != RUN


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "members: 0 of them"),
        ([Person(str(number)).peer for number in range(limits.MEMBERS + 1)], "members: 257 of them"),
        ([*IDS[1:], IDS[0]], "must be sorted"),
        ([IDS[0], IDS[0]], "each there once"),
        ([IDS[0], "zoe"], "members = 'zoe': must be a Member's id"),
        (["QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"], "must be a Member's id"),
    ],
)
def test_what_is_no_roster_of_members(members: list[str], said: str) -> None:
    with pytest.raises(Refused) as refused:
        RunRules.from_json(_roster(members))
    assert said in refused.value.detail


def test_other_rules_are_another_run() -> None:
    assert len({rules(fragments=f, bits=b, min_peers=m).run_id for f in (1, 2) for b in (8, 32) for m in (2, 3)}) == 8


# Invites.

ADDRESSES = st.builds(
    "/ip4/{}.{}.{}.{}/tcp/{}/p2p/{}".format, *[st.integers(0, 255)] * 4, st.integers(1, 65535), st.sampled_from(list(CAST))
) | st.text(max_size=40).map(lambda text: f"/dns4/{text}/tcp/1/p2p/{PEER}")


@given(st.lists(ADDRESSES, max_size=limits.ADDRESSES))
def test_invites_come_back(peers: list[str]) -> None:
    invite = Invite(RUN, tuple(peers))
    assert Invite.parse(str(invite)) == invite
    assert Invite.parse(f"  {invite}\n") == invite
    assert re.fullmatch(r"[!-~]+", str(invite))


@pytest.mark.parametrize(
    "text",
    [
        "", "tapestry:", "tapestry:abc", f"http:{RUN}", f"tapestry:{RUN.upper()}", f"tapestry:{RUN}?peer=", f"tapestry:{RUN}?peer=1.2.3.4",
        f"tapestry:{RUN}?peer=/ip4/1.2.3.4/tcp/1", f"tapestry:{RUN}?peer=/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"tapestry:{RUN}?peer=/ip4/1.2.3.4/tcp/1/p2p/{PEER}x", f"tapestry:{RUN}?key=/ip4/1.2.3.4/tcp/1/p2p/{PEER}",
        f"tapestry:{RUN}?" + "&".join([f"peer=/ip4/1.2.3.4/tcp/1/p2p/{PEER}"] * 9), f"tapestry:{RUN}?peer=/dns4/{'x' * 250}/p2p/{PEER}",
        "\0" * 100, "tapestry:" + "?" * 1000,
    ],
)  # fmt: skip
def test_other_text_is_no_invite(text: str) -> None:
    with pytest.raises(Refused):
        Invite.parse(text)


@given(st.text(max_size=60) | st.text("tapestry:?&=peer/%0 ", max_size=40).map(lambda tail: f"tapestry:{RUN}{tail}"))
def test_any_text_is_an_invite_or_refused(text: str) -> None:
    try:
        invite = Invite.parse(text)
    except Refused:
        return
    assert Invite.parse(str(invite)) == invite


def test_dumps_is_what_is_hashed() -> None:
    assert RULES.canonical() == dumps(RULES.to_json())
