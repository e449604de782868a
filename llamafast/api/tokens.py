"""POST /apply-template, /tokenize and /detokenize: what the model would read, nothing generated."""

from __future__ import annotations

from array import array

import msgspec

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.fields import note
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.schema.tokens import DetokenizeRequest, Prompt, Text, TokenizeRequest, TokenPiece, Tokens
from llamafast.api.sse import encode
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import checked_ids, most_characters
from llamafast.chat.prompt.conversation import Conversation
from llamafast.engine.types import EnginePort
from llamafast.errors import InvalidRequest, UnsupportedParameter, Untokenizable

_CHAT = msgspec.json.Decoder(ChatRequest)
_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)

# Tokens that /detokenize takes, or what the context holds if that is more.
MAX_TOKENS = 1 << 18


class TokenEndpoints:
    def __init__(self, engine: EnginePort, chat: ChatFormat) -> None:
        self._info = engine.info
        self._tokenizer = engine.tokenizer
        self._chat = chat

    async def apply_template(self, exchange: Exchange, body: bytes) -> None:
        """A chat request's prompt as text."""
        await exchange.reply(200, await run_sized(len(body), self._applied, exchange, body), JSON_TYPE)

    async def tokenize(self, exchange: Exchange, body: bytes) -> None:
        await exchange.reply(200, await run_sized(len(body), self._tokenized, exchange, body), JSON_TYPE)

    async def detokenize(self, exchange: Exchange, body: bytes) -> None:
        await exchange.reply(200, await run_sized(len(body), self._detokenized, exchange, body), JSON_TYPE)

    def _applied(self, exchange: Exchange, body: bytes) -> bytes:
        request = decode_request(_CHAT, body, self._info, exchange)
        parts = self._chat.media_parts(self._info.modalities)
        request.messages = parts.messages(request.messages)
        conversation = Conversation(request.task(sources=parts.sources), self._chat)
        note(conversation.unread, exchange)
        return encode(Prompt(conversation.prompt))

    def _tokenized(self, exchange: Exchange, body: bytes) -> bytes:
        """The pieces are encoded one by one, so that no call keeps the GIL for all of them."""
        request = decode_request(_TOKENIZE, body, self._info, exchange)
        tokens = self._tokens(request)
        strings: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
        if request.return_token_strs is not None:
            texts = map(self._tokenizer.text, tokens)
            strings = [msgspec.Raw(encode(text)) for text in texts] if request.return_token_strs else None
        pieces = [msgspec.Raw(encode(self._piece(token))) for token in tokens] if request.with_pieces else None
        return encode(
            Tokens(tokens.tolist() if pieces is None else pieces, len(tokens), self._info.max_seq_len, strings)
        )

    def _tokens(self, request: TokenizeRequest) -> array[int]:
        given = [name for name in ("content", "prompt") if getattr(request, name) is not None]
        given += ["messages"] if request.messages else []
        if len(given) != 1:
            raise InvalidRequest("exactly one of `content`, `prompt` and `messages` must be given", param="content")
        add_special = request.add_special if request.add_special_tokens is None else request.add_special_tokens
        if request.messages:
            if add_special:
                raise InvalidRequest("a chat gets its special tokens from its template", param="add_special_tokens")
            parts = self._chat.media_parts(self._info.modalities)
            request.messages = parts.messages(request.messages)
            if parts.sources:
                raise UnsupportedParameter("media have no tokens to be told", param=parts.sources[0].path)
            rendered = Conversation(request.task(), self._chat).text
            self._check_length(rendered, "messages")
            with Untokenizable.named("messages"):
                return self._chat.control.tokenize(rendered, self._tokenizer)
        text = request.content if request.prompt is None else request.prompt
        self._check_length(text or "", given[0])
        with Untokenizable.named(given[0]):
            return self._tokenizer.tokenize(
                text or "",
                add_special=request.prompt is not None if add_special is None else add_special,
                parse_special=request.parse_special is not False,
            )

    def _check_length(self, text: str, param: str) -> None:
        most = most_characters(self._info)
        if len(text) > most:
            raise InvalidRequest(f"`{param}` has {len(text)} characters, at most {most} are tokenised", param=param)

    def _piece(self, token: int) -> TokenPiece:
        piece = self._tokenizer.piece(token)
        try:
            return TokenPiece(token, piece.decode())
        except UnicodeDecodeError:
            return TokenPiece(token, list(piece))

    def _detokenized(self, exchange: Exchange, body: bytes) -> bytes:
        request = decode_request(_DETOKENIZE, body, self._info, exchange)
        most = max(MAX_TOKENS, self._info.max_seq_len)
        if len(request.tokens) > most:
            raise InvalidRequest(f"`tokens` has {len(request.tokens)} tokens, at most {most} are taken", param="tokens")
        text = self._tokenizer.detokenize(checked_ids(request.tokens, "tokens", self._info))
        return encode(Text(text, text))
