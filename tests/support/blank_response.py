"""A Response that nothing has been said in yet."""

from __future__ import annotations

from llamafast.api.responses.schema import ReasoningOptions, Response, TextOptions


def blank_response(response_id: str) -> Response:
    return Response(
        id=response_id, created_at=1, status="in_progress", instructions=None, max_output_tokens=None,
        max_tool_calls=None, model="m", output=[], parallel_tool_calls=True, presence_penalty=0, frequency_penalty=0,
        previous_response_id=None, prompt_cache_key=None, prompt_cache_retention=None, reasoning=ReasoningOptions(),
        store=True, safety_identifier=None, temperature=1, text=TextOptions({"type": "text"}), tool_choice="auto",
        tools=[], top_logprobs=0, top_p=1, truncation="disabled", user=None, metadata={},
    )  # fmt: skip
