"""Which keys a file and the environment give, and whose a secret is."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast.api.keys import Keys, keys_of
from llamafast.config import ServerConfig
from llamafast.engine.types import Tenant
from llamafast.errors import ConfigError, InvalidKey

if TYPE_CHECKING:
    from _typeshed import TraceFunction

Write = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path) -> Write:
    """Write the file of keys; its path."""
    path = tmp_path / "keys"

    def write(text: str) -> Path:
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def found(keys: Keys, secret: bytes) -> tuple[Tenant, bool] | None:
    key = keys.find(secret)
    return None if key is None else (key.tenant, key.admin)


def test_a_line_is_a_key_and_what_it_allows(file: Write) -> None:
    hashed = sha256(b"hashed").hexdigest()
    keys = Keys(file(
        "# ours\n\nplain\n  alice-secret name=alice max_running=4 priority=-5\n"
        f"boss name=root admin\nsha256:{hashed} name=bob\n#name=nobody\n"
    ))  # fmt: skip
    assert keys.required
    assert found(keys, b"alice-secret") == (Tenant(name="alice", salt="alice", max_running=4, priority=-5), False)
    assert found(keys, b"hashed") == (Tenant(name="bob", salt="bob"), False)
    assert found(keys, b"boss") == (Tenant(name="root", salt="root"), True)
    own = f"key-{sha256(b'plain').hexdigest()[:16]}"
    assert found(keys, b"plain") == (Tenant(name=own, salt=own), False)
    for wrong in (b"", b"plai", b"plain ", b"plainx", b"#name=nobody", b"#", hashed.encode(), b"x" * 10**6):
        assert keys.find(wrong) is None


def test_prefixes_are_shared_where_keys_are_no_salt(file: Write) -> None:
    keys = Keys(file("secret name=alice"), salted=False)
    assert found(keys, b"secret") == (Tenant(name="alice"), False)


def test_a_key_of_the_environment_is_no_administrator(file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFAST_API_KEY", "secret")
    default = (Tenant(name="default"), False)
    assert found(keys_of(ServerConfig()), b"secret") == default
    both = keys_of(ServerConfig(api_key_file=str(file("other name=other admin"))))
    assert found(both, b"secret") == (Tenant(name="default", salt="default"), False)
    assert found(both, b"other") == (Tenant(name="other", salt="other"), True)
    named = keys_of(ServerConfig(api_key_file=str(file("secret name=ops admin"))))
    assert found(named, b"secret") == (Tenant(name="ops", salt="ops"), True)
    for written in ("  secret\n", f"sha256:{sha256(b'secret').hexdigest().upper()}"):
        monkeypatch.setenv("LLAMAFAST_API_KEY", written)
        assert found(keys_of(ServerConfig()), b"secret") == default
    for wrong in ("two words", "k\udcff", "\u00e9", "x" * 5000, "sha256:12"):
        monkeypatch.setenv("LLAMAFAST_API_KEY", wrong)
        with pytest.raises(ConfigError, match=r"^LLAMAFAST_API_KEY: "):
            keys_of(ServerConfig())
    monkeypatch.delenv("LLAMAFAST_API_KEY")
    assert not keys_of(ServerConfig()).required


@pytest.mark.parametrize("line", [
    "secret name=", "secret name=a name=b", "secret name=a/b", "secret admin=1", "secret admin=",
    "secret max_running=0", "secret max_running=x", "secret max_running=99999999999",
    "secret priority=1.5", "secret colour=red", "secret name",
    "s" * 5000, "secret name=" + "x" * 65, "good name=again", "sha256:secret", "sha256:" + "f" * 63, "secr\u00e9t",
])  # fmt: skip
def test_a_line_that_is_no_key_is_named_and_the_secret_is_not(file: Write, line: str) -> None:
    with pytest.raises(ConfigError, match="line 2") as caught:
        Keys(file(f"good\n{line}\n"))
    assert "secret" not in str(caught.value)
    assert "sss" not in str(caught.value)


def test_a_file_without_keys_lets_nobody_in(file: Write, tmp_path: Path) -> None:
    for text in ("", "# none\n\n"):
        with pytest.raises(ConfigError, match="holds no key"):
            Keys(file(text))
    with pytest.raises(ConfigError, match=rf"^server\.api_key_file: {Path.cwd()}/missing: No such file or directory$"):
        Keys(Path("missing"))
    path = file("")
    path.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="api_key_file"):
        Keys(path)
    path.write_bytes(b"\xef\xbb\xbfsecret name=a\n")  # an editor's byte order mark
    assert Keys(path).find(b"secret") is not None
    path.write_bytes(b"x\n" * 600_000)
    with pytest.raises(ConfigError, match="bytes"):
        Keys(path)


def test_the_file_is_read_again_and_a_fault_changes_nothing(file: Write, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(file("one name=a\nmoved name=a"))
    one, moved = keys.find(b"one"), keys.find(b"moved")
    file("two name=b\nmoved name=b")
    assert keys.find(b"two") is None
    with caplog.at_level(logging.INFO):
        keys.reload()
    assert (keys.find(b"one"), found(keys, b"two")) == (None, (Tenant(name="b", salt="b"), False))
    for key in (one, moved):
        with pytest.raises(InvalidKey):
            keys.tenant(key)
    file("three name=b nonsense")
    with caplog.at_level(logging.CRITICAL):
        keys.reload()
    assert found(keys, b"two") == (Tenant(name="b", salt="b"), False)
    assert keys.find(b"three") is None
    two = keys.find(b"two")
    file("two name=b priority=3")
    keys.reload()
    assert keys.tenant(two).priority == 3


@pytest.mark.parametrize("second", ["", "max_running=3", "max_running=2 priority=1"])
def test_keys_of_one_name_allow_the_same(file: Write, second: str) -> None:
    Keys(file("one name=a max_running=2\ntwo name=a max_running=2 admin\n"))
    with pytest.raises(ConfigError, match="line 2"):
        Keys(file(f"one name=a max_running=2\ntwo name=a {second}\n"))
    Keys(file("one name=default max_running=2"))
    with pytest.raises(ConfigError, match="line 1"):
        Keys(file("one name=default max_running=2"), "secret")


def test_a_file_that_others_can_read_is_told(file: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = file("one")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        Keys(path)
    assert "chmod 600" in caplog.text


SECRETS = st.text(st.characters(codec="ascii", exclude_categories=("Z", "C")), min_size=1)


@given(secrets=st.lists(SECRETS.filter(lambda text: not text.startswith(("#", "sha256:"))), min_size=1, unique=True))
def test_each_secret_finds_its_own_key_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, secrets: list[str]
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("\n".join(f"{secret} name=n{k}" for k, secret in enumerate(secrets)))
    keys = Keys(path)
    for k, secret in enumerate(secrets):
        key = keys.find(secret.encode())
        assert key is not None
        assert key.tenant.name == f"n{k}"
        assert keys.find(secret.encode() + b"!") is None or secret + "!" in secrets


SECRET = b"sk-" + b"k" * 61


class Sealed(bytes):
    """A secret that can be hashed and cut and nothing else: it is compared with none and none of its bytes is read."""

    def __getitem__(self, at: slice) -> Sealed:  # type: ignore[override]
        return Sealed(super().__getitem__(at))

    def _read(self, *_: object) -> NoReturn:
        raise AssertionError("a secret was read")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _read
    __iter__ = __contains__ = startswith = endswith = find = index = _read


def walk(run: Callable[[], object]) -> list[tuple[str, str, int]]:
    """Every line and call, those of C functions among them, that ``run`` takes."""
    steps: list[tuple[str, str, int]] = []

    def line(frame: FrameType, event: str, _: object) -> TraceFunction:
        steps.append((event, frame.f_code.co_qualname, frame.f_lineno))
        return line

    def call(frame: FrameType, event: str, called: object) -> None:
        if event.startswith("c_"):
            steps.append((event, str(getattr(called, "__qualname__", "")), frame.f_lineno))

    traced, profiled = sys.gettrace(), sys.getprofile()
    gc.disable()  # what is called when it ends is no part of it
    sys.settrace(line)
    sys.setprofile(call)
    try:
        run()
    finally:
        sys.setprofile(profiled)
        sys.settrace(traced)
        gc.enable()
    return steps


def test_how_a_key_is_refused_does_not_depend_on_how_much_of_it_was_right(file: Write) -> None:
    """What could tell in time: another way through the code, or a comparison that ends where two secrets differ."""
    keys = Keys(file("\n".join([SECRET.decode(), *(f"other-{k}" for k in range(50))])))

    def refuse(secret: bytes) -> None:
        with contextlib.suppress(InvalidKey):
            keys.authenticate({b"authorization": b"Bearer " + secret})
            pytest.fail("it was let in")

    def compare(secret: bytes) -> bool:
        return all(one == other for one, other in zip(secret, SECRET, strict=True))

    wrong = [SECRET[:n_right] + b"?" * (len(SECRET) - n_right) for n_right in range(len(SECRET))]
    assert len({len(walk(partial(compare, secret))) for secret in wrong}) == len(wrong)  # what is looked at can tell
    first, *others = [walk(partial(refuse, secret)) for secret in wrong]
    assert len(first) > 10
    assert all(other == first for other in others)

    assert keys.find(Sealed(SECRET)) is not None
    assert keys.find(Sealed(wrong[-1])) is None


def test_a_key_without_a_name_that_is_alone_has_the_part_of_those_without_a_key(file: Write) -> None:
    """A router's, whose events are of that part alone."""
    own = f"key-{sha256(b'one').hexdigest()[:16]}"
    keys = Keys(file("one\n"))
    assert found(keys, b"one") == (Tenant(name=own), False)
    assert not keys.separate
    file("one\ntwo\n")
    keys.load()
    assert found(keys, b"one") == (Tenant(name=own, salt=own), False)
    assert keys.separate
    named = Keys(file("one name=router\n"))
    assert found(named, b"one") == (Tenant(name="router", salt="router"), False)
    assert named.separate
    beside = Keys(file("one\n"), "two")
    assert found(beside, b"two") == (Tenant(name="default", salt="default"), False)
    assert found(beside, b"one") == (Tenant(name=own, salt=own), False)
    assert not Keys(file("one name=router\n"), salted=False).separate
