"""The files of a batch: what is a request, what is done already."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.json import encode

from llamafast.batch.lines import (
    BadLine,
    Done,
    Fault,
    Request,
    Response,
    Result,
    add_line,
    failed,
    open_output,
    read_requests,
)
from llamafast.batch.run import Batch
from llamafast.errors import ConfigError

NOTHING = Done(set(), set(), 0)
GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "é"}}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_request(tmp_path: Path) -> None:
    (request,) = read_requests(written(tmp_path / "in", "", GOOD, "  "), NOTHING)
    assert isinstance(request, Request)
    assert request[:3] == (2, "a", "/v1/completions")
    assert json.loads(request.body) == {"prompt": "é"}


@pytest.mark.parametrize(
    ("line", "told", "has_id"),
    [
        ("{", "is not JSON", False),
        ("[" * 100_000, "is not JSON", False),
        ([], "`custom_id`", False),
        ({**GOOD, "custom_id": 7}, "`custom_id`", False),
        ({**GOOD, "custom_id": ""}, "`custom_id`", False),
        ({**GOOD, "custom_id": "\ud83d"}, "surrogate", False),
        ({**GOOD, "method": "GET"}, "`method`", True),
        ({**GOOD, "url": "http://elsewhere"}, "`url`", True),
        ({**GOOD, "url": "/v1 HTTP/1.1\r\nx: y"}, "`url`", True),
        ({**GOOD, "url": None}, "`url`", True),
        ({**GOOD, "body": []}, "`body`", True),
        ({**GOOD, "body": {"stream": True}}, "stream", True),
    ],
)
def test_a_line_that_is_none(tmp_path: Path, line: Any, told: str, has_id: bool) -> None:
    (bad,) = read_requests(written(tmp_path / "in", line), NOTHING)
    assert isinstance(bad, BadLine)
    assert told in bad.reason
    assert (bad.custom_id is not None) == has_id
    assert failed(bad).failed
    encode(failed(bad))


def test_an_id_is_one_requests(tmp_path: Path) -> None:
    first, second = read_requests(written(tmp_path / "in", GOOD, GOOD), NOTHING)
    assert (type(first), type(second)) == (Request, BadLine)


RESULTS = st.lists(
    st.one_of(
        st.tuples(st.just("ok"), st.integers(0, 99)),
        st.tuples(st.just("failed"), st.integers(100, 199)),
        st.tuples(st.just("bad"), st.integers(1, 50)),
    ),
    unique=True, max_size=8,
)  # fmt: skip


def result(kind: str, n: int) -> Result:
    if kind == "bad":
        return failed(BadLine(n, None, "is not JSON"))
    return Result(custom_id=str(n), response=Response(200 if kind == "ok" else 500, "req_x", {"text": "é"}))


@given(RESULTS, st.integers(0, 10**6))
def test_an_output_that_was_cut_anywhere_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, results: list[tuple[str, int]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("batch") / "out"
    whole = [encode(result(*each)) + b"\n" for each in results]
    raw = b"".join(whole)
    path.write_bytes(raw[: cut % (len(raw) + 1)])
    path.with_name("in").touch()
    file, done = open_output(path, path.with_name("in"))
    with file:
        kept = []
        for (kind, n), line in zip(results, whole, strict=True):
            if sum(map(len, whole[: len(kept) + 1])) > cut % (len(raw) + 1):
                break
            kept.append((kind, n, line))
        assert done.custom_ids == {str(n) for kind, n, _ in kept if kind != "bad"}
        assert done.lines == {n for kind, n, _ in kept if kind == "bad"}
        assert done.n_failed == sum(kind != "ok" for kind, _, _ in kept)
        file.write(b"{}\n")
    assert path.read_bytes() == b"".join(line for _, _, line in kept) + b"{}\n"


def test_what_is_done_is_not_asked_again(tmp_path: Path) -> None:
    path = written(tmp_path / "in", GOOD, "{", {**GOOD, "custom_id": "b"}, "}")
    left = list(read_requests(path, Done({"a"}, {2}, 0)))
    assert [(type(one), one.line) for one in left] == [(Request, 3), (BadLine, 4)]


def test_what_is_no_request_is_told_once(tmp_path: Path) -> None:
    lines = [{**GOOD, "method": "GET"}, "{", GOOD, GOOD, {**GOOD, "custom_id": "b", "body": {"stream": True}}]
    given, output = written(tmp_path / "in", *lines), tmp_path / "out"
    with output.open("wb") as file:
        for one in read_requests(given, NOTHING):
            if isinstance(one, BadLine):
                file.write(encode(failed(one)) + b"\n")
    file, done = open_output(output, given)
    with file:
        assert [one.line for one in read_requests(given, done)] == [3]
        assert done.n_failed == 4


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        list(read_requests(tmp_path / "none", NOTHING))
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is no file"):
            open_output(path, written(tmp_path / "in", GOOD))


@pytest.mark.parametrize(
    "raw",
    [
        b"notes without a line's end",
        b"notes\n",
        b'{"something": "else"}\n',
        json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode() + b"\n",
        b'{"id":"batch_req_1","custom_id":"a"}\n',
        b'{"id":"other","custom_id":"a","response":null,"error":null}\n',
        encode(Result(custom_id="a")) + b"\nnotes",
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_file_that_is_no_output_stays_as_it_is(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="no output of a batch"):
        Batch(written(tmp_path / "in", GOOD), path)
    assert path.read_bytes() == raw


def test_the_batch_itself_is_no_output(tmp_path: Path) -> None:
    path = written(tmp_path / "in", GOOD)
    (tmp_path / "link").symlink_to(path)
    for output in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="another file"):
            Batch(path, output)
    assert json.loads(path.read_bytes()) == GOOD


def test_an_output_is_one_batchs(tmp_path: Path) -> None:
    given, output = written(tmp_path / "in", GOOD), tmp_path / "out"
    file, _ = open_output(output, given)
    with file:
        file.write(b'{"id":"batch_')
        file.flush()
        with pytest.raises(ConfigError, match="another batch"):
            Batch(given, output)
        assert output.read_bytes() == b'{"id":"batch_'
    file, _ = open_output(output, given)
    file.close()


def test_without_a_batch_no_output_is_opened(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match="No such file"):
        Batch(tmp_path / "none", output)
    assert not output.exists()


def test_a_result_is_a_line_as_openai_has_it() -> None:
    told = json.loads(encode(Result(custom_id="a", response=Response(200, "req_x", {"b": 1}))))
    assert told.pop("id").startswith("batch_req_")
    assert told == {
        "custom_id": "a", "response": {"status_code": 200, "request_id": "req_x", "body": {"b": 1}}, "error": None,
    }  # fmt: skip
    fault = json.loads(encode(Result(custom_id="a", error=Fault(code="c", message="m"))))
    assert (fault["response"], fault["error"]) == (None, {"code": "c", "message": "m"})


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, out = written(tmp_path / "in", GOOD, GOOD | {"custom_id": "b"}), tmp_path / "out"
    file, _ = open_output(out, given)
    add_line(file, encode(result("ok", 1)) + b"\n")
    whole = out.read_bytes()
    room = [10, 7]

    def write(fd: int, data: memoryview) -> int:
        if fd != file.fileno():  # another thread's
            return real(fd, data)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[: room.pop()])

    real = os.write
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ConfigError, match=r"out: No space left on device; the batch goes on"):
        add_line(file, encode(result("ok", 2)) + b"\n")
    file.close()
    assert out.read_bytes() == whole
    room[:] = [100] * 50
    file, done = open_output(out, given)
    with file:
        assert done.custom_ids == {"1"}
        add_line(file, encode(result("ok", 2)) + b"\n")
    assert out.read_bytes().count(b"\n") == 2
