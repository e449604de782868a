"""Parts of a message that are no text: what kind of media each is, and what a model that takes none answers."""

from __future__ import annotations

from llamafast.errors import UnsupportedParameter

# As OpenAI's APIs, Anthropic's, vLLM and llama-server name them.
_MEDIA = frozenset(
    {
        "image_url", "input_image", "image", "audio_url", "input_audio", "video_url", "input_video", "video",
    }
)  # fmt: skip
_FILES = frozenset({"file", "input_file"})


def refusal(kind: str, path: str) -> UnsupportedParameter:
    """What a part of this kind, which is no text, is answered with; ``path`` leads to the part."""
    if kind in _MEDIA:
        message = f"{path}: this model takes text only: model.mtmd is not configured"
    elif kind in _FILES:
        message = f"{path}: files are not kept here"
    else:
        message = f"{path}: content of type {kind[:64]!r} is not supported yet"
    return UnsupportedParameter(message, param=f"{path}.type")
