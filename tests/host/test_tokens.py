"""Codes and tokens, with a clock of our own."""

from tapestryd.host.tokens import CODE_S, TOKEN_S, Tokens


def test_a_code_is_good_once() -> None:
    tokens = Tokens()
    code = tokens.code(0)
    token = tokens.redeem(code, CODE_S - 1)
    assert token is not None
    assert tokens.redeem(code, CODE_S - 1) is None
    assert token != code
    assert tokens.redeem(token, 0) is None
    assert tokens.holds(token, CODE_S)
    assert not tokens.holds(code, 0)


def test_both_end() -> None:
    tokens = Tokens()
    assert tokens.redeem(tokens.code(0), CODE_S) is None
    token = tokens.redeem(tokens.code(0), 10) or ""
    assert tokens.holds(token, 10 + TOKEN_S - 1)
    assert not tokens.holds(token, 10 + TOKEN_S)


def test_what_was_never_given_holds_nothing() -> None:
    tokens = Tokens()
    assert not tokens.holds("", 0)
    assert not tokens.holds("\ud800", 0)
    assert tokens.redeem("", 0) is None


def test_there_is_a_bound_and_the_oldest_give_way() -> None:
    tokens = Tokens()
    codes = [tokens.code(float(i)) for i in range(100)]
    assert len(tokens._codes) == 8
    assert tokens.redeem(codes[0], 100) is None
    held = [tokens.redeem(tokens.code(float(i)), float(i)) or "" for i in range(100)]
    assert [tokens.holds(token, 101) for token in held] == [False] * 68 + [True] * 32
