"""Forms: what clients send is read byte for byte, however it is cut; what is no form costs nobody anything."""

from __future__ import annotations

import sys
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.forms import BOUNDARY, CONTENT_TYPE, form, part

from llamafast.api import form as form_module
from llamafast.api.form import MAX_PARTS, MAX_TEXT_BYTES, read_form
from llamafast.errors import InvalidRequest, LlamafastError, UnsupportedMediaType

TYPE = CONTENT_TYPE.encode()
END = f"--{BOUNDARY}--\r\n".encode()


def read(body: bytes, content_type: bytes = TYPE) -> Any:
    return read_form(body, content_type, ("languages",))


def test_fields_lists_objects_and_the_file() -> None:
    fields = [
        ("model", "m"), ("languages", "en"), ("languages", "de"), ("include[]", "a"), ("include[]", "b"),
        ("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.5"), ("prompt", ""),
        ("file", b"\r\n--not-the-boundary\r\n\0"),
    ]  # fmt: skip
    found = read(form(fields))
    assert found.fields == {
        "model": "m",
        "languages": ["en", "de"],
        "include": ["a", "b"],
        "chunking_strategy": {"type": "server_vad", "threshold": "0.5"},
    }
    assert bytes(found.file) == b"\r\n--not-the-boundary\r\n\0"


def test_a_file_is_a_part_of_the_body_and_no_copy() -> None:
    body = form([("file", b"x" * 1000)])
    assert read(body).file.obj is body


def test_httpx_and_a_form_without_a_file() -> None:
    request = httpx.Request("POST", "http://a/", data={"model": "m", "prompt": "ä\n"}, files={"file": b"\0\1"})
    found = read(request.read(), request.headers["content-type"].encode())
    assert (found.fields, bytes(found.file)) == ({"model": "m", "prompt": "ä\n"}, b"\0\1")
    assert read(form([("model", "m")])).file is None
    assert bytes(read(form([("file", b"")])).file) == b""
    assert bytes(read(form([("file", "RIFF")])).file) == b"RIFF"  # without the name of a file


PIECES = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"-", b"--", f"--{BOUNDARY}".encode()[:-3], f"\r\n--{BOUNDARY}".encode()[:9], b"a"]
    ),
    max_size=30,
).map(b"".join)  # fmt: skip


@pytest.mark.law
@given(file=PIECES, text=st.text(min_size=1, max_size=20).filter(str.strip), size=st.integers(1, 70))
def test_whatever_is_in_a_file_and_however_it_is_cut(file: bytes, text: str, size: int) -> None:
    body = form([("prompt", text.replace("\r", " ")), ("file", file), ("model", "m")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form_module, "_PIECE", size)
        found = read(body)
    assert bytes(found.file) == file
    assert found.fields == {"prompt": text.replace("\r", " "), "model": "m"}


HEAD = f"--{BOUNDARY}\r\n".encode()
WHOLE = form([("model", "m"), ("file", b"sound")])


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (WHOLE, b"multipart/form-data", "names no boundary"),
        (WHOLE, b"multipart/form-data; boundary=", "names no boundary"),
        (WHOLE, b"multipart/form-data; boundary=" + b"x" * 71, "1 to 70 bytes"),
        (WHOLE, b"multipart/form-data; boundary=another", "not well formed|cut off"),
        (WHOLE[:-4], TYPE, "cut off"),
        (WHOLE[:-40], TYPE, "cut off"),
        (WHOLE[:60], TYPE, "cut off"),
        (b"", TYPE, "cut off"),
        (b"{}", TYPE, "not well formed"),
        (HEAD + b"\r\n\r\nsound\r\n" + END, TYPE, "has no name"),
        (HEAD + b"Content-Type: a/b\r\n\r\nsound\r\n" + END, TYPE, "has no name"),
        (HEAD + b"Content-Disposition: attachment; name=file\r\n\r\nsound\r\n" + END, TYPE, "has no name"),
        (HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n\r\n" + END, TYPE, "not well formed"),
        (HEAD + b"x: y\r\n" * 1000 + b"\r\n\r\n" + END, TYPE, "not well formed"),
        (HEAD + b"no colon\r\n\r\n\r\n" + END, TYPE, "not well formed"),
        (form([("model", "m")] * 2), TYPE, "'model' occurs twice"),
        (form([("file", b"a"), ("file", b"b")]), TYPE, "'file' occurs twice"),
        (form([("model", "m"), ("model[]", "n")]), TYPE, "occurs twice, in two forms"),
        (form([("a[b]", "m"), ("a[b]", "n")]), TYPE, "occurs twice"),
        (form([("sound", b"a")]), TYPE, "the one that is taken is called `file`"),
        (form([("n" * 129, "m")]), TYPE, "a very long one"),
        (form([("languages[]", "m")] * 10_000), TYPE, f"at most {MAX_PARTS} fields"),
        (form([("prompt", "x" * MAX_TEXT_BYTES), ("model", "m")]), TYPE, f"at most {MAX_TEXT_BYTES} bytes"),
        (part("prompt", "A").replace(b"A", b"\xff") + END, TYPE, "'prompt' is not valid UTF-8"),
    ],
    ids=range(24),
)  # fmt: skip
def test_what_is_no_form_is_told(body: bytes, content_type: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        read(body, content_type)


def test_boundaries_by_the_million_are_refused_before_they_are_read() -> None:
    """What almost ends a part costs a parser some time; a body may have millions of it."""
    body = form([("file", f"\r\n--{BOUNDARY[:1]}!".encode() * 2_000_000)], BOUNDARY[:1])
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match="at most 128 fields"):
        read(body, f"multipart/form-data; boundary={BOUNDARY[:1]}".encode())
    assert time.thread_time() - began < 2


def test_nothing_that_a_client_writes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidRequest):
        read(b"--" + BOUNDARY.encode() + b"!!")
    assert caplog.records == []


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(UnsupportedMediaType, match=r"pip install 'llamafast\[media\]'"):
        read(WHOLE)


@given(body=st.binary(max_size=300), content_type=st.binary(max_size=60))
def test_no_bytes_do_harm(body: bytes, content_type: bytes) -> None:
    for kind in (content_type, TYPE):
        try:
            read(HEAD + body, b"multipart/form-data; " + kind)
            read(HEAD + body, kind)
        except LlamafastError:
            pass
