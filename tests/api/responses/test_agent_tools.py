"""openai-agents with the tools it runs itself: the model calls one, the agent runs it, the model answers."""

from __future__ import annotations

import json
from typing import Any

import agents
import httpx2
import openai
import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.fake_engine import FakeEngine, say


class Editor:
    def __init__(self) -> None:
        self.operations: list[tuple[str, str, str | None]] = []

    def create_file(self, operation: Any) -> str:
        self.operations.append((operation.type, operation.path, operation.diff))
        return "created"

    update_file = delete_file = create_file


async def run(name: str, arguments: dict[str, Any], tool: Any, *, stream: bool) -> tuple[str, str]:
    """The agent's answer, and the second prompt, which holds the call and its result."""
    engine = FakeEngine()
    engine.info = replace(engine.info, max_seq_len=4096)
    call = f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    scripts = iter([say(*call.partition("arg")), say("Done.")])
    engine.script = lambda plan: next(scripts)(plan)
    transport = httpx2.ASGITransport(make_app(engine, max_body_bytes=1 << 20))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        model = agents.OpenAIResponsesModel("org/fake-model", openai_client=client)
        agent = agents.Agent(name="a", model=model, tools=[tool])
        if stream:
            streamed = agents.Runner.run_streamed(agent, "Go.")
            async for _ in streamed.stream_events():
                pass
            answer = streamed.final_output
        else:
            answer = (await agents.Runner.run(agent, "Go.")).final_output
    return answer, engine.tokenizer.detokenize(engine.generations[-1].plan.prompts[0])


@pytest.fixture(autouse=True)
def _no_tracing() -> None:
    agents.set_tracing_disabled(True)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_shell(stream: bool) -> None:
    asked: list[list[str]] = []

    def execute(request: Any) -> str:
        asked.append(request.data.action.commands)
        return "two files"

    answer, prompt = await run("shell", {"commands": ["ls"]}, agents.ShellTool(executor=execute), stream=stream)
    assert (asked, answer) == ([["ls"]], "Done.")
    assert "two files" in prompt


@pytest.mark.parametrize("stream", [False, True])
async def test_a_local_shell(stream: bool) -> None:
    asked: list[list[str]] = []

    def execute(request: Any) -> str:
        asked.append(request.data.action.command)
        return "two files"

    tool = agents.LocalShellTool(executor=execute)
    answer, prompt = await run("local_shell", {"command": ["ls"]}, tool, stream=stream)
    assert (asked, answer) == ([["ls"]], "Done.")
    assert "two files" in prompt


@pytest.mark.parametrize("stream", [False, True])
async def test_a_patch(stream: bool) -> None:
    editor = Editor()
    operation = {"type": "create_file", "path": "a.txt", "diff": "+hello"}
    answer, prompt = await run("apply_patch", operation, agents.ApplyPatchTool(editor=editor), stream=stream)
    assert (editor.operations, answer) == ([("create_file", "a.txt", "+hello")], "Done.")
    assert "created" in prompt
