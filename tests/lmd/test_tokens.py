"""Tokens: kept as hashes, valid for their time and their scopes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.errors import Conflict, Forbidden, InvalidRequest, LmdError, NotFound, Unauthorized
from lmd.tokens import Tokens, digest_of, read_credential

SECRET = "0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path, clock: Clock) -> Tokens:
    return Tokens(tmp_path / "state" / "tokens.json", {}, clock)


def test_a_token_is_valid_until_the_moment_that_it_expires(tokens: Tokens, clock: Clock) -> None:
    secret, token = tokens.create("a", ["inference"], lifetime=10)
    assert token.expires_at == 1010
    clock.now = 1009.9
    assert tokens.check(secret, "inference").name == "a"
    clock.now = 1010
    with pytest.raises(Unauthorized, match="expired"):
        tokens.check(secret, "inference")


def test_a_scope_that_was_not_given_is_forbidden(tokens: Tokens) -> None:
    secret, _ = tokens.create("a", ["manage"])
    tokens.check(secret, "manage")
    with pytest.raises(Forbidden, match="manage"):
        tokens.check(secret, "inference")


def test_another_process_finds_them_again(tokens: Tokens, tmp_path: Path) -> None:
    secret, _ = tokens.create("a", ["manage", "inference", "manage"])
    tokens.create("b", ["inference"])
    tokens.revoke("b")
    again = Tokens(tmp_path / "state" / "tokens.json", {})
    assert [(token.name, token.scopes) for token in again.rows()] == [("a", ("inference", "manage"))]
    assert again.check(secret, "manage").name == "a"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["tokens.json"]


def test_wrong_names_scopes_and_times_are_refused(tokens: Tokens) -> None:
    tokens.create("a", ["inference"])
    with pytest.raises(Conflict):
        tokens.create("a", ["inference"])
    for name in ("", "-x", "a b", "../a", "x" * 65, "a\n"):
        with pytest.raises(InvalidRequest):
            tokens.create(name, ["inference"])
    for scopes in ([], ["admin"], [""]):
        with pytest.raises(InvalidRequest):
            tokens.create("b", scopes)
    with pytest.raises(InvalidRequest):
        tokens.create("b", ["inference"], lifetime=0)
    with pytest.raises(NotFound):
        tokens.revoke("b")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 2, "tokens": []}'])
def test_a_damaged_file_stops_the_start_and_is_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(LmdError, match=r"tokens\.json"):
        Tokens(file, {})
    assert file.read_text() == content


def test_what_cannot_be_written_is_not_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(LmdError):
        tokens = Tokens(tmp_path / "state" / "tokens.json", {})
        tokens.create("a", ["inference"])


def test_a_credential_gives_tokens_that_cannot_be_revoked(tmp_path: Path) -> None:
    line = f"# comment\n\nops {SECRET} manage,inference\nother sha256:{digest_of(SECRET + 'x').upper()}  # hashed\n"
    (tmp_path / "tokens").write_text(line)
    tokens = Tokens(tmp_path / "state.json", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert tokens.check(SECRET, "manage").name == "ops"
    assert tokens.check(SECRET + "x", "inference").name == "other"
    with pytest.raises(Conflict, match="credential"):
        tokens.revoke("ops")
    with pytest.raises(Conflict):
        tokens.create("ops", ["inference"])


def test_ones_own_token_can_be_revoked_beside_a_credentials_of_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "state" / "tokens.json"
    secret, _ = Tokens(file, {}).create("ops", ["inference"])
    (tmp_path / "tokens").write_text(f"ops {SECRET} manage\n")
    tokens = Tokens(file, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert not tokens.revoke("ops").from_credential
    with pytest.raises(Unauthorized):
        tokens.check(secret, "inference")
    assert tokens.check(SECRET, "manage").name == "ops"


@pytest.mark.parametrize(
    "line", ["alone", "a b c d", "a short", f"-a {SECRET}", f"a {SECRET} root", "a sha256:xyz", f"a {SECRET} ,"]
)
def test_a_wrong_line_of_a_credential_is_named_without_its_token(line: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_credential(f"\n{line}\n")
    assert SECRET not in str(raised.value)


@given(st.text())
def test_no_text_is_a_token_that_was_not_made(text: str) -> None:
    tokens = Tokens(Path("/nonexistent/tokens.json"), {})
    with pytest.raises(Unauthorized):
        tokens.check(text, "inference")
