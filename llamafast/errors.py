"""The exception tree. Each class knows the HTTP status and the OpenAI error type it becomes on the wire."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What ``repr`` writes of a text: an apostrophe inside a word opens none, and what nothing closes goes on to the end.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*(?:'|\\?\Z)|"(?:[^"\\]|\\.)*(?:"|\\?\Z))""", re.DOTALL)
_LONGEST_REASON, _LONGEST_READ = 300, 4096


class LlamafastError(Exception):
    """An error that a client may see.

    ``message`` is written for the client; ``param`` names the request field at fault, ``code`` is OpenAI's
    machine-readable code; ``retry_after`` (seconds) and ``should_retry``, by which OpenAI's clients go, become headers.
    ``told`` is that part of the message which may have a client's text in it and is not in quotation marks.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, told: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self._told = told
        if code is not None:
            self.code = code

    @property
    def reason(self) -> str:
        """The message for the log: without what it quotes of a request, on one line."""
        message = self.message.replace(self._told, "...") if self._told else self.message
        return " ".join(_QUOTED.sub("...", message[:_LONGEST_READ]).split())[:_LONGEST_REASON]


class InvalidRequest(LlamafastError):
    """The request cannot be served as it is: wrong type, bad range, unusable combination."""

    status = 400
    type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """A field of OpenAI's API that this server does not implement."""

    code = "unsupported_parameter"


class UnknownParameter(InvalidRequest):
    """A field that no endpoint of this kind has; most probably another one was meant."""

    code = "unknown_parameter"


class Untokenizable(InvalidRequest):
    """A text that the model's tokeniser cannot take."""

    @classmethod
    @contextmanager
    def named(cls, param: str) -> Iterator[None]:
        """What is tokenised inside is the request's field ``param``."""
        try:
            yield
        except cls as error:
            error.param = param
            raise


class ThreadUnsupported(UnsupportedParameter):
    """A client asks for a conversation to be kept, or continued, in a way that no conversation is kept here: it sends
    all of it instead."""

    code = "thread_unsupported_request"


class InvalidMedia(InvalidRequest):
    """A picture, sound or video that cannot be had, cannot be read, or is larger than may be sent."""

    code = "invalid_media"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the context of one sequence, which is ``limit`` tokens; ``size`` says how long it is and
    ``text`` what it is made of, by default ``param``. ``n_tokens`` is as many as it has at least.

    Clients that make room by themselves look for OpenAI's sentence or, in the text too, for the code.
    """

    code = "context_length_exceeded"

    def __init__(
        self, limit: int, size: str, *, param: str, text: str | None = None, n_tokens: int | None = None
    ) -> None:
        text = text or param
        self.limit = limit
        self.n_tokens = limit + 1 if n_tokens is None else n_tokens
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, your {text} resulted in {size}. "
            f"Please reduce the length of the {text}. ({self.code})",
            param=param,
        )


class ModelNotFound(InvalidRequest):
    """The request names a model that is not served here."""

    status = 404
    code = "model_not_found"


class AdapterNotFound(InvalidRequest):
    """No adapter of that name is loaded."""

    status = 404
    code = "adapter_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no adapter {name[:128]!r}", param="lora_name")


class AdapterInUse(InvalidRequest):
    """Requests have the adapter that is to be unloaded."""

    status = 409
    code = "adapter_in_use"

    def __init__(self, name: str) -> None:
        super().__init__(f"requests in progress have the adapter {name[:128]!r}", param="lora_name")


class DoesNotGenerate(InvalidRequest):
    """The model only embeds, or with ``ranks`` only ranks."""

    def __init__(self, *, ranks: bool) -> None:
        instead = "/v1/rerank" if ranks else "/v1/embeddings"
        super().__init__(f"this model does not generate text; it serves {instead}", param="model")


class DoesNotEmbed(InvalidRequest):
    """The model only generates, by its GGUF or its config."""

    def __init__(self) -> None:
        super().__init__(
            'this model makes no embeddings; `"embedding": true` in the config\'s `model` section turns them on',
            param="model",
        )


class PreviousResponseNotFound(InvalidRequest):
    """The request continues a response that is not kept (any more)."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"there is no response {response_id[:128]!r} to continue", param="previous_response_id")


class InvalidKey(InvalidRequest):
    """A request that needs a key comes without one, or with one that is nobody's."""

    status = 401


class PermissionDenied(InvalidRequest):
    """Whoever asks may not do this."""

    status = 403
    code = "permission_denied"


class HostNotAllowed(PermissionDenied):
    """A browser calls this server by a name that is not its own."""

    code = "host_not_allowed"


class OriginNotAllowed(PermissionDenied):
    """The request is a web page's that may not use this server."""

    code = "origin_not_allowed"


class NotFound(InvalidRequest):
    """No such URL."""

    status = 404
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    """The URL exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class UpgradeRequired(InvalidRequest):
    """The URL is that of a WebSocket."""

    status = 426
    code = "upgrade_required"


class RequestTimeout(InvalidRequest):
    """The body, or more of it, did not come within ``server.body_seconds``."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(InvalidRequest):
    """The body is larger than ``server.max_body_bytes``."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not JSON."""

    status = 415
    code = "unsupported_media_type"


class QueueFull(LlamafastError):
    """More requests wait than ``server.max_queue`` allows."""

    status = 429
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"
    retry_after = 1.0


class EngineUnavailable(LlamafastError):
    """The engine, or what works for it, is loading, draining or stopped: to be tried again."""

    status = 503
    code = "engine_unavailable"
    retry_after = 1.0


class ShuttingDown(EngineUnavailable):
    """The server ends, and with it whatever has not ended by itself."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class QueueTimeout(EngineUnavailable):
    """Nothing of the request has begun within ``server.queue_seconds``."""

    code = "queue_timeout"


class AnswerTimeout(LlamafastError):
    """The request has not ended within ``server.request_seconds``."""

    status = 504
    code = "request_timeout"
    should_retry = False  # it would take as long again


class StoreUnavailable(LlamafastError):
    """The database of stored responses is locked by somebody else, or broken."""

    status = 503
    code = "store_unavailable"
    retry_after = 1.0


class EngineFailure(LlamafastError):
    """A step failed; the requests of that step get this, the engine goes on."""

    code = "engine_failure"


class ProjectorFailure(EngineFailure):
    """The process that encodes media died of one of this ``kind``, or could not encode it."""

    def __init__(self, kind: str, *, param: str | None = None) -> None:
        super().__init__(f"the projector failed on this {kind}", param=param)


class ModelDied(LlamafastError):
    """The process of the model ended while it answered; the next request starts another one."""

    status = 502
    code = "model_died"


class ModelNotLoaded(EngineUnavailable):
    """The model could not be loaded this time."""

    code = "model_load_failed"


class ModelTooLarge(LlamafastError):
    """The model takes more memory than all models together may."""

    status = 503
    code = "model_too_large"
    should_retry = False


class ModelFailed(LlamafastError):
    """The model's process has ended too often: an administrator has to say that it may be tried again."""

    status = 503
    code = "model_failed"
    should_retry = False


def internal_error() -> LlamafastError:
    """What a client may know of a bug; the traceback goes to the log."""
    return LlamafastError("the server had an internal error")


class ConfigError(Exception):
    """A config file that cannot be served. The text starts with the JSON path at fault where there is one."""


class ModelLoadError(Exception):
    """A model, adapter or context that llama.cpp refused."""


class ModelAbsent(ModelLoadError):
    """The model's file or package is not on this machine; nothing else is known to be wrong."""
