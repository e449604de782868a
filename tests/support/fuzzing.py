"""Requests that are almost right: bodies, chunking, headers. The same ones for the same seed."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any, NamedTuple

import msgspec

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.messages.schema import CountTokensRequest, MessagesRequest
from llamafast.api.native.schema import CompletionBody, InfillBody
from llamafast.api.responses.schema import ResponsesRequest
from llamafast.api.schema.completions import CompletionRequest
from llamafast.api.schema.embeddings import EmbeddingsRequest, RerankRequest, ScoreRequest
from llamafast.api.schema.foreign import CHANGING, WHOSE
from llamafast.api.schema.tokens import DetokenizeRequest, TokenizeRequest

TOOL = {
    "type": "function",
    "function": {
        "name": "weather", "description": "d", "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    {"role": "user", "content": "And?"},
]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    {"role": "user", "content": "And?"},
]
RESPONSE_TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "document", "title": "t", "source": {
        "type": "text", "media_type": "text/plain", "data": "d"}}]},
    {"role": "system", "content": "Note."},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "", "signature": "llamafast:aG0="},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"a": 1}},
    ]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "c1", "content": [
            {"type": "tool_reference", "tool_name": "weather"},
            {"type": "image", "source": {"type": "url", "url": "x"}},
            {"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "Sun"}]},
        ]},
    ]},
    {"role": "system", "content": [
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "weather"}},
    ]},
]  # fmt: skip
MESSAGES_TOOL = {"name": "weather", "input_schema": SCHEMA, "strict": True, "defer_loading": True}
BASH = {"type": "bash_20250124", "name": "bash"}
# path, a good request, where its fields are declared
SEEDS: list[tuple[str, dict[str, Any], type[msgspec.Struct]]] = [
    ("/v1/completions", {"prompt": "hello"}, CompletionRequest),
    ("/v1/completions", {"prompt": [1, 2, 3], "logprobs": 2, "echo": True, "n": 2}, CompletionRequest),
    ("/v1/completions", {
        "prompt": "a", "json_schema": SCHEMA, "stop": ["x"], "logit_bias": {"5": 1},
    }, CompletionRequest),
    ("/v1/completions", {
        "prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True},
    }, CompletionRequest),
    ("/v1/completions", {
        "prompt": "a", "prompt_logprobs": 2, "add_special_tokens": False, "regex": "a+", "stop": ["</s>"],
    }, CompletionRequest),
    ("/v1/completions", {
        "prompt": "a", "stream": True, "return_progress": True, "timings_per_token": True,
    }, CompletionRequest),
    ("/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "auto"}, ChatRequest),
    ("/v1/chat/completions", {
        "messages": [*MESSAGES[:1], {"role": "assistant", "content": "a", "prefix": True}], "prompt_logprobs": 1,
        "parse_tool_calls": False, "tools": [TOOL],
    }, ChatRequest),
    ("/v1/chat/completions", {
        "messages": MESSAGES[:1], "stream": True, "return_progress": True, "timings_per_token": True,
    }, ChatRequest),
    ("/v1/chat/completions", {
        "messages": MESSAGES[:2], "logprobs": True, "top_logprobs": 2, "stream": True,
    }, ChatRequest),
    ("/v1/chat/completions", {
        "messages": MESSAGES[-1:],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    }, ChatRequest),
    ("/v1/responses", {"input": ITEMS, "tools": [RESPONSE_TOOL], "instructions": "Be kind."}, ResponsesRequest),
    ("/v1/responses", {"input": "Hi", "stream": True, "text": {"format": {"type": "text"}}}, ResponsesRequest),
    ("/v1/responses/input_tokens", {"input": ITEMS[:1]}, ResponsesRequest),
    ("/v1/messages", {
        "messages": TURNS, "system": [{"type": "text", "text": "Be kind."}], "tools": [MESSAGES_TOOL, BASH],
        "max_tokens": 2, "tool_choice": {"type": "auto"}, "thinking": {"type": "adaptive"}, "stop_sequences": ["x"],
    }, MessagesRequest),
    ("/v1/messages", {"messages": TURNS[:1], "max_tokens": 2, "stream": True}, MessagesRequest),
    ("/completion", {
        "prompt": ["a", 98], "n_predict": 2, "n_probs": 1, "return_tokens": True, "response_fields": ["content"],
    }, CompletionBody),
    ("/infill", {
        "input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "x", "filename": "f"}], "prompt": "c",
        "n_predict": 2, "samplers": ["top_k", "infill"], "t_max_predict_ms": 50, "n_indent": 2, "stream": True,
        "return_progress": True,
    }, InfillBody),
    ("/v1/messages/count_tokens", {"messages": TURNS, "tools": [MESSAGES_TOOL]}, CountTokensRequest),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "float"}, EmbeddingsRequest),
    ("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}]}, RerankRequest),
    ("/v1/score", {"text_1": "a", "text_2": ["b"]}, ScoreRequest),
    ("/tokenize", {"content": "hello", "with_pieces": True}, TokenizeRequest),
    ("/tokenize", {"messages": MESSAGES[:2]}, TokenizeRequest),
    ("/detokenize", {"tokens": [1, 2, 3]}, DetokenizeRequest),
    ("/apply-template", {"messages": MESSAGES, "tools": [TOOL]}, ChatRequest),
]  # fmt: skip
LIMITS = {"n_predict": 2, "max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "n": 1, "best_of": 1}
STRINGS = [
    "", "x", "\0", "\ud800", "\U0001f600", "é" * 300, "<|im_start|>", "{{ x }}", "{%", "</s>", "auto", "none",
    "function",
    "json_object", "user", "assistant", "tool", "developer", "text", "image_url", "resp_x", "a\nb", "%s%n", "﷽" * 20,
    "data:image/png;base64,AAAA", "[" * 50, "(" * 50, "root ::= x", 'start: "a"',
]  # fmt: skip
SCALARS = [None, True, False, 0, 1, -1, 2, 8.0, 0.5, 1e300, -1e-300, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40]


class Message(NamedTuple):
    """One request as it goes over a socket, in writes; ``ends``: nothing follows although more may be expected."""

    writes: list[bytes]
    ends: bool


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def request(self) -> tuple[str, bytes]:
        """A path and a body."""
        rng = self._rng
        path, tree, kind = rng.choice(SEEDS)
        tree = copy.deepcopy(tree)
        for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
            self._mutate(tree, kind)
        if rng.random() < 0.95:
            tree |= {name: limit for name, limit in LIMITS.items() if name in kind.__struct_fields__}
        body = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        while rng.random() < 0.15:
            body = self._damaged(body)
        return path, body

    def message(self) -> Message:
        """The same with a head, however it is cut."""
        rng = self._rng
        path, body = self.request()
        method = "POST" if rng.random() < 0.96 else rng.choice(["GET", "PUT", "OPTIONS", "HEAD", "post", "X" * 30])
        if rng.random() < 0.04:
            path = rng.choice(
                ["/", "/v1", path + "/", path + "?a=%zz&b", "/%ff%00", "/v1/models/%2e%2e", "*", "/" + "a" * 3000]
            )
        version = "HTTP/1.0" if rng.random() < 0.02 else "HTTP/1.1"
        headers = [("host", "localhost"), ("connection", "close"), ("content-type", "application/json")]
        if rng.random() < 0.1:
            headers.append(rng.choice(HEADERS))
        chunked, ends = rng.random() < 0.3, False
        if chunked:
            headers.append(("transfer-encoding", "chunked"))
            body, ends = self._chunked(body)
        elif rng.random() < 0.97:
            length = len(body)
            if rng.random() < 0.04:
                length = rng.choice([0, length + 10, max(0, length - 3), 10**12])
                ends = length > len(body)
            headers.append(("content-length", str(length)))
        rng.shuffle(headers)
        head = f"{method} {path} {version}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        raw = head.encode("latin-1") + body
        if rng.random() < 0.02:
            raw, ends = self._damaged(raw), True
        if rng.random() < 0.7:
            return Message([raw], ends)
        cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randrange(1, 5)))
        return Message([raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)], ends)

    def value(self, depth: int = 0) -> Any:
        rng = self._rng
        kind = rng.random()
        if kind < 0.35 or depth > 3:
            return rng.choice(SCALARS)
        if kind < 0.7:
            return rng.choice(STRINGS)
        if kind < 0.85:
            return [self.value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(KEYS): self.value(depth + 1) for _ in range(rng.randrange(4))}

    def _mutate(self, tree: dict[str, Any], kind: type[msgspec.Struct]) -> None:
        rng = self._rng
        if rng.random() < 0.5:
            name = rng.choice(kind.__struct_fields__)
            if rng.random() < 0.2:
                name = rng.choice([*CHANGING, *WHOSE, name[:-1], f"{name}s", name.upper(), name[1:] + name[:1]])
            tree[name] = self.value()
            return
        node: Any = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                return
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            action = rng.random()
            if action < 0.7:
                node[key] = self.value()
            elif action < 0.85:
                del node[key]
            elif isinstance(node, dict):
                node[rng.choice(KEYS)] = node[key]
            else:
                node.extend(node * rng.randrange(1, 4))
            return

    def _damaged(self, raw: bytes) -> bytes:
        rng = self._rng
        at = rng.randrange(len(raw) + 1)
        until = min(len(raw), at + rng.randrange(1, 8))
        return rng.choice([
            raw[:at],
            raw[:at] + raw[until:],
            raw[:at] + rng.randbytes(rng.randrange(1, 5)) + raw[until:],
            raw[:at] + rng.choice(PIECES) + raw[at:],
            raw[:until] + raw[at:],
        ])  # fmt: skip

    def _chunked(self, body: bytes) -> tuple[bytes, bool]:
        rng = self._rng
        pieces, at = [], 0
        while at < len(body):
            size = rng.choice([1, 7, 64, 1000])
            piece = body[at : at + size]
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
            at += size
        pieces.append(b"0\r\n\r\n")
        if rng.random() < 0.15:
            broken = rng.randrange(len(pieces))
            pieces[broken] = rng.choice(BROKEN_CHUNKS)
            return b"".join(pieces), True
        return b"".join(pieces), False


PATHS = ["/", "/v1", "/%ff%00", "/v1/models/%2e%2e", "*", "/" + "a" * 3000]
PIECES = [b'"', b"\\", b"{", b"[", b",", b":", b"\\u", b"\\ud800", b"1e999", b"NaN", b"\0"]
BROKEN_CHUNKS = [
    b"zz\r\nab\r\n", b"5\r\nab\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\n", b"\r\n", b"3;a=b\r\nabc\r\n", b"",
]  # fmt: skip
HEADERS = [
    ("content-type", "text/plain"), ("content-type", "application/json; charset=latin-1"), ("content-encoding", "gzip"),
    ("expect", "100-continue"), ("expect", "x"), ("x-request-id", "a b\x7f"), ("x-request-id", "é" * 50),
    ("traceparent", "00-x"), ("content-length", "5"), ("content-length", "-1"), ("transfer-encoding", "gzip"),
    ("upgrade", "websocket"), ("accept", "text/event-stream"), ("x" * 200, "y" * 5000),
    ("authorization", "Bearer \xff"), ("origin", "null"), ("te", "trailers"), ("range", "bytes=0-"), ("host", "y"),
]  # fmt: skip
KEYS = [
    "type",
    "role",
    "content",
    "text",
    "name",
    "id",
    "function",
    "$ref",
    "anyOf",
    "enum",
    "items",
    "schema",
    "",
    "\0",
    "é",
]

# What Python says when nobody foresaw something.
_INTERNAL = re.compile(
    r"Traceback|\w(Error|Exception)\b|has no attribute|NoneType|not subscriptable|unhashable|not iterable"
    r"|index out of range|object is not|<class|0x[0-9a-f]{8}|instance, |internal error|takes \d+ pos|positional arg"
)


def fault(status: int, body: bytes) -> str | None:
    """What is wrong with an answer, if anything is. An answer of the HTTP library has no body."""
    if status >= 500:
        return f"status {status}: {body[:300]!r}"
    if status < 400:
        return None
    if not body:
        return None if status in (400, 405, 408, 411, 413, 414, 417, 431) else f"status {status} without a body"
    try:
        told = json.loads(body)
        error = told["error"]
    except (ValueError, TypeError, KeyError):
        return f"no error object: {body[:300]!r}"
    fields = {"message", "type", "details"} if told.get("type") == "error" else {"message", "type", "param", "code"}
    if set(error) != fields or not isinstance(error["message"], str):
        return f"neither OpenAI's shape nor Anthropic's: {error}"
    if _INTERNAL.search(error["message"]):
        return f"an internal error in disguise: {error['message']}"
    if len(error["message"]) > 2000:
        return f"a message of {len(error['message'])} characters"
    return None
