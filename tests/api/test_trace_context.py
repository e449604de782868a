"""What is taken of a client's trace: W3C's `traceparent`, and beside a valid one `tracestate`."""

from __future__ import annotations

import pytest

from llamafast.api.record import Identity

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def identity(*states: bytes, trace: bytes = TRACE) -> Identity:
    fields = [(b"host", b"x"), *((b"tracestate", state) for state in states), (b"traceparent", trace)]
    return Identity.of(fields)


@pytest.mark.parametrize(
    "state",
    [
        b"congo=t61rcWkgMzE",
        b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        b"rojo=1 \t,\tcongo=2,,",
        b"4t-en_a*n/t@v3nd0r=a value:with~!all;of these",
        b"a" * 256 + b"=" + b"v" * 256,
        b"4" + b"a" * 240 + b"@" + b"a" * 14 + b"=1",
        b",".join(b"k%d=%b" % (n, b"v" * 250) for n in range(32)),
        b"twice=1,twice=2",
    ],
)
def test_a_state_is_taken_as_it_is(state: bytes) -> None:
    assert identity(state)[1:] == (TRACE, False, "", state)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b" , ",
        b"congo",
        b"=1",
        b"congo=",
        b"congo=1=2",
        b"congo =1",
        b"Congo=1",
        b"4congo=1",
        b"a@4b=1",
        b"a@b@c=1",
        b"congo=\x7f",
        b"congo=1\xff",
        b"congo=1,rojo",
        b"a" * 257 + b"=1",
        b"a=" + b"v" * 257,
        b"4" + b"a" * 241 + b"@b=1",
        b"a@" + b"b" * 15 + b"=1",
        b",".join(b"k%d=1" % n for n in range(33)),
    ],
)
def test_one_that_is_none_costs_the_trace_nothing(state: bytes) -> None:
    assert identity(state)[1:] == (TRACE, False, "", b"")


def test_several_fields_are_one_list() -> None:
    assert identity(b"rojo=1", b"", b"congo=2").tracestate == b"rojo=1,,congo=2"
    assert not identity(b"rojo=1", b"congo").tracestate
    assert not identity(*(b"k%d=1" % n for n in range(33))).tracestate


@pytest.mark.parametrize(
    "trace",
    [
        b"",
        TRACE + b"-",
        TRACE.upper(),
        b"ff" + TRACE[2:],
        TRACE.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32),
        TRACE.replace(b"00f067aa0ba902b7", b"0" * 16),
    ],
)
def test_without_a_trace_there_is_no_state(trace: bytes) -> None:
    assert identity(b"rojo=1", trace=trace)[1:] == (b"", False, "", b"")
