"""Deltas → the content blocks of one Message, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from llamafast.api.messages.call_input import CallInput, whole_input
from llamafast.api.messages.schema import (
    SIGNATURE,
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    Event,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    SignatureDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    Usage,
)
from llamafast.api.sealed import sealed
from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)


class MessageWriter:
    """Tells one Message; every method returns the events that follow the ones before.

    One block is open at a time: it ends when another begins, a call when it is complete. ``message`` is final after
    ``closing``: streamed or not, an answer is what its events say. With ``omits_thinking`` a block says only that the
    model has thought; what, is in its signature, with which clients bring it back: the next prompt then extends what is
    in the cache.
    """

    def __init__(self, message: Message, *, omits_thinking: bool = False) -> None:
        self.message = replace(message, content=[])
        self._omits_thinking = omits_thinking
        self._events: list[Event] = []
        self._open: Block | None = None
        self._pieces: list[str] = []
        self._omitted: list[str] = []
        self._input = CallInput()

    def opening(self, usage: Usage) -> list[Event]:
        # told as it is now
        return [MessageStart(replace(self.message, content=[], usage=usage))]

    def add(self, deltas: Iterable[Delta]) -> list[Event]:
        for delta in deltas:
            match delta:
                case ContentDelta(text):
                    self._enter(TextBlock, TextBlock(""))
                    self._tell(TextDelta(text), text)
                case ReasoningDelta(text):
                    self._enter(ThinkingBlock, ThinkingBlock("", ""))
                    if self._omits_thinking:
                        self._omitted.append(text)
                    else:
                        self._tell(ThinkingDelta(text), text)
                case ToolCallBegin(_, id, name):
                    self._begin(ToolUseBlock(f"toolu_{id.removeprefix('call_')}", name, {}))
                    self._input = CallInput()
                case ToolCallArguments(_, text):
                    self._tell_input(self._input.read(text))
                case ToolCallEnd():
                    self._tell_input(self._input.rest(complete=True))
                    self._close()
        return self._take()

    def closing(self, stop_reason: StopReason, stop_sequence: str | None, usage: Usage) -> list[Event]:
        self._close()
        message = self.message
        message.stop_reason, message.stop_sequence, message.usage = stop_reason, stop_sequence, usage
        self._events += [MessageDelta(Ending(stop_reason, stop_sequence), usage), MessageStop()]
        return self._take()

    def _enter(self, kind: type[Block], block: Block) -> None:
        if not isinstance(self._open, kind):
            self._begin(block)

    def _begin(self, block: Block) -> None:
        self._close()
        self._open = block
        self._events.append(BlockStart(len(self.message.content), block))

    def _tell(self, delta: TextDelta | ThinkingDelta | InputJsonDelta, text: str) -> None:
        self._pieces.append(text)
        self._events.append(BlockDelta(len(self.message.content), delta))

    def _tell_input(self, text: str) -> None:
        if text:
            self._tell(InputJsonDelta(text), text)

    def _close(self) -> None:
        if self._open is None:
            return
        if isinstance(self._open, ToolUseBlock):
            self._tell_input(self._input.rest(complete=False))
        index, said = len(self.message.content), "".join(self._pieces)
        match self._open:
            case TextBlock():
                block: Block = TextBlock(said)
            case ThinkingBlock():
                signature = sealed("".join(self._omitted)) if self._omits_thinking else SIGNATURE
                block = ThinkingBlock(said, signature)
                self._events.append(BlockDelta(index, SignatureDelta(signature)))
                self._omitted.clear()
            case ToolUseBlock(id, name):
                block = ToolUseBlock(id, name, whole_input(said))
        self._events.append(BlockStop(index))
        self.message.content.append(block)
        self._open = None
        self._pieces.clear()

    def _take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken
