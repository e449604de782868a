"""Messages that a template refuses in their place: joined to a neighbour, or set apart by a turn that says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from llamafast.chat.prompt.accepts import Accepts
from llamafast.chat.request import Message

Content = str | list[Message]

INSTRUCTIONS = frozenset({"system", "developer"})
BETWEEN_MESSAGES = "\n\n"


def fold(messages: list[Message], accepts: Accepts) -> list[Message]:
    """``messages`` whose contents are in the template's form, in an order that it takes."""
    first = next((i for i, message in enumerate(messages) if message["role"] not in INSTRUCTIONS), len(messages))
    system, rest = messages[:first], messages[first:]
    if not accepts.later_systems:
        rest = _without_later_systems(rest)
    takes_system = accepts.system and (accepts.system_before_answers or not rest or rest[-1]["role"] == "user")
    if system and not (accepts.several_systems and takes_system):
        system = [_merged(system)]
    if system and not takes_system:
        system, rest = [], _merged_into_first_user({**system[0], "role": "user"}, rest)
    turns = _in_turns(rest, accepts)
    if not (accepts.lone_system or any(message["role"] == "user" for message in turns)):
        turns.insert(0, _filler("user", accepts))
    return system + turns


def results_first(messages: Iterable[Message]) -> list[Message]:
    """Instructions that part calls from their results stand behind these."""
    runs = groupby(messages, key=lambda message: message["role"] == "tool" or message["role"] in INSTRUCTIONS)
    return [
        message
        for between, run in runs
        for message in (sorted(run, key=lambda message: message["role"] in INSTRUCTIONS) if between else run)
    ]


def _without_later_systems(messages: list[Message]) -> list[Message]:
    """Each system message as part of the user's turn before it, else of the one behind it, else as one."""
    turns: list[list[Message]] = []
    only_system = False
    for message in messages:
        is_system = message["role"] in INSTRUCTIONS
        follows_user = bool(turns) and turns[-1][-1]["role"] == "user"
        if is_system:
            only_system = only_system or not follows_user
            message = {**message, "role": "user"}
        if follows_user and message["role"] == "user" and (is_system or only_system):
            turns[-1].append(message)
        else:
            turns.append([message])
        only_system = only_system and is_system
    return [_merged(turn) for turn in turns]


def _merged_into_first_user(text: Message, messages: list[Message]) -> list[Message]:
    if messages and messages[0]["role"] == "user":
        return [
            {**messages[0], "content": joined([text["content"], messages[0]["content"]], BETWEEN_MESSAGES)},
            *messages[1:],
        ]
    return [text, *messages]


def _in_turns(messages: list[Message], accepts: Accepts) -> list[Message]:
    """User and assistant in turn as far as the template insists on it; calls and results lie within a turn."""
    turns: list[list[Message]] = []
    last = ""
    for message in messages:
        role = message["role"]
        is_turn = role in ("user", "assistant") and "tool_calls" not in message
        follows = bool(turns) and turns[-1][-1]["role"] == role and "tool_calls" not in turns[-1][-1]
        repeats = accepts.repeated_users if role == "user" else accepts.repeated_assistants
        if is_turn and follows and not repeats:
            turns[-1].append(message)
            continue
        takes_first = accepts.call_first if "tool_calls" in message else accepts.assistant_first
        if role == "assistant" and not last and not takes_first:
            turns.append([_filler("user", accepts)])
            last = "user"
        elif is_turn and role == last and not follows:
            if role == "user" and not accepts.user_after_results:
                turns.append([_filler("assistant", accepts)])
            elif role == "assistant" and not accepts.repeated_assistants:
                turns.append([_filler("user", accepts)])
        turns.append([message])
        last = role if is_turn else last
    return [_merged(turn) for turn in turns]


def _filler(role: str, accepts: Accepts) -> Message:
    text = accepts.filler if role == "assistant" else ""
    return {"role": role, "content": text if accepts.strings else [{"type": "text", "text": text}]}


def _merged(messages: list[Message]) -> Message:
    """One or more messages as one: the contents of all, and of other fields the first that has them."""
    if len(messages) == 1:
        return messages[0]
    fields = {name: value for message in reversed(messages) for name, value in message.items()}
    return {**fields, "content": joined([message["content"] for message in messages], BETWEEN_MESSAGES)}


def joined(contents: Sequence[Content], joint: str) -> Content:
    """``contents`` as one, with ``joint`` between those that say something."""
    spoken = [content for content in contents if content]
    if not any(isinstance(content, list) for content in spoken):
        return joint.join(map(text_of, spoken))
    between = [{"type": "text", "text": joint}] if joint else []
    parts = [part for content in spoken for part in [*between, *_parts(content)]]
    return parts[len(between) :]


def text_of(content: Content | None) -> str:
    return content or "" if isinstance(content, str | None) else "".join(part["text"] for part in content)


def _parts(content: Content) -> list[Message]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
