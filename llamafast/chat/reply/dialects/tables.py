"""The dialects of model families, and which one a chat template speaks."""

from __future__ import annotations

from msgspec.structs import replace

from llamafast.chat.reply.dialects.forms import CallForm, Dialect
from llamafast.errors import ConfigError

HERMES = CallForm(shape="object", before="<tool_call>\n", after="\n</tool_call>", between="\n")
QWEN_XML = CallForm(
    shape="tagged",
    before="<tool_call>\n<function=",
    name_end=">\n",
    parameter_begin="<parameter=",
    key_end=">\n",
    value_end="\n</parameter>\n",
    after="</function>\n</tool_call>",
    between="\n",
    loose=("<function=",),
)
BARE_JSON = CallForm(shape="object", arguments_key="parameters", between="; ", loose=("<|python_tag|>",))
DEEPSEEK = CallForm(
    shape="named",
    begin="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>",
    name_end="<｜tool▁sep｜>",
    after="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
)

# In order of preference: the first whose evidence is complete.
DIALECTS = (
    Dialect(
        name="harmony",
        evidence=("<|start|>", "<|channel|>", "<|message|>"),
        reasoning=(),
        forms=(
            CallForm(
                shape="named",
                before="<|channel|>commentary to=",
                name_prefix="functions.",
                name_end=" <|constrain|>json<|message|>",
                after="<|call|>",
            ),
        ),
        dropped=("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
        channels=True,
    ),
    Dialect(
        name="gemma-4",
        evidence=("<|tool_call>call:",),
        reasoning=(("<|channel>thought", "<channel|>"),),
        forms=(CallForm(shape="named", before="<|tool_call>call:", string_quote='<|"|>', after="<tool_call|>"),),
        dropped=("<|tool_response>",),
    ),
    Dialect(
        name="kimi-k2",
        evidence=("<|tool_calls_section_begin|>",),
        reasoning=(("<think>", "</think>"), ("◁think▷", "◁/think▷")),
        forms=(
            CallForm(
                shape="named",
                begin="<|tool_calls_section_begin|>",
                before="<|tool_call_begin|>",
                name_prefix="functions.",
                numbered=True,
                name_end="<|tool_call_argument_begin|>",
                after="<|tool_call_end|>",
                end="<|tool_calls_section_end|>",
            ),
        ),
        calls_end_reasoning=True,
    ),
    Dialect(
        name="deepseek-v3.2",
        evidence=("DSML", "invoke name="),
        forms=(
            CallForm(
                shape="tagged",
                begin="<｜DSML｜function_calls>\n",
                before='<｜DSML｜invoke name="',
                name_end='">\n',
                parameter_begin='<｜DSML｜parameter name="',
                key_end='" string="true">',
                key_end_json='" string="false">',
                value_end="</｜DSML｜parameter>\n",
                after="</｜DSML｜invoke>\n",
                end="</｜DSML｜function_calls>",
            ),
        ),
    ),
    Dialect(
        name="deepseek-r1",
        evidence=("<｜tool▁calls▁begin｜>", "```json"),
        forms=(
            replace(
                DEEPSEEK,
                before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                name_end="\n```json\n",
                after="\n```<｜tool▁call▁end｜>",
                between="\n",
            ),
        ),
    ),
    Dialect(name="deepseek-v3.1", evidence=("<｜tool▁calls▁begin｜>",), forms=(DEEPSEEK,)),
    Dialect(
        name="command",
        evidence=("<|START_ACTION|>",),
        reasoning=(("<|START_THINKING|>", "<|END_THINKING|>"),),
        forms=(
            CallForm(
                shape="object",
                begin="<|START_ACTION|>",
                listed=True,
                name_key="tool_name",
                arguments_key="parameters",
                between=",\n",
                end="<|END_ACTION|>",
            ),
        ),
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    Dialect(
        name="command-r-plus",
        evidence=("Action:\\n```json", "tool_name"),
        forms=(
            CallForm(
                shape="object",
                begin="Action:\n```json\n",
                listed=True,
                name_key="tool_name",
                arguments_key="parameters",
                between=",\n",
                end="\n```",
            ),
        ),
    ),
    Dialect(
        name="devstral",
        evidence=("[TOOL_CALLS]", "[ARGS]"),
        reasoning=(("[THINK]", "[/THINK]"), ("<think>", "</think>")),
        forms=(
            CallForm(shape="named", before="[TOOL_CALLS]", name_end="[ARGS]", id_begin="[CALL_ID]"),
            CallForm(shape="object", begin="[TOOL_CALLS]", listed=True, between=", "),
        ),
    ),
    Dialect(
        name="mistral",
        evidence=("[TOOL_CALLS]",),
        reasoning=(("[THINK]", "[/THINK]"), ("<think>", "</think>")),
        forms=(
            CallForm(shape="object", begin="[TOOL_CALLS]", listed=True, between=", "),
            CallForm(shape="named", before="[TOOL_CALLS]", name_end="[ARGS]", id_begin="[CALL_ID]"),
        ),
    ),
    Dialect(
        name="minimax-m2",
        evidence=("<minimax:tool_call>",),
        forms=(
            CallForm(
                shape="tagged",
                begin="<minimax:tool_call>\n",
                before='<invoke name="',
                name_end='">\n',
                parameter_begin='<parameter name="',
                key_end='">',
                value_end="</parameter>\n",
                after="</invoke>\n",
                end="</minimax:tool_call>",
            ),
        ),
    ),
    Dialect(
        name="seed-oss",
        evidence=("<seed:tool_call>",),
        reasoning=(("<seed:think>", "</seed:think>"),),
        forms=(
            replace(
                QWEN_XML,
                before="<seed:tool_call>\n<function=",
                key_end=">",
                value_end="</parameter>\n",
                after="</function>\n</seed:tool_call>",
            ),
        ),
    ),
    Dialect(
        name="glm-4",
        evidence=("<arg_key>", "<arg_value>"),
        forms=(
            CallForm(
                shape="tagged",
                before="<tool_call>",
                name_end="\n",
                parameter_begin="<arg_key>",
                key_end="</arg_key>\n<arg_value>",
                value_end="</arg_value>\n",
                after="</tool_call>",
                between="\n",
            ),
        ),
        dropped=("<|begin_of_box|>", "<|end_of_box|>"),
    ),
    Dialect(name="qwen-xml", evidence=("<tool_call>", "<function=", "<parameter="), forms=(QWEN_XML, HERMES)),
    Dialect(
        name="lfm2",
        evidence=("List of tools: ",),
        forms=(
            CallForm(shape="python", begin="<|tool_call_start|>", listed=True, between=", ", end="<|tool_call_end|>"),
        ),
    ),
    Dialect(
        name="phi-4",
        evidence=("<|tool_call|>", "<|/tool_call|>"),
        forms=(CallForm(shape="object", begin="<|tool_call|>", listed=True, between=", ", end="<|/tool_call|>"),),
    ),
    Dialect(
        name="granite-3",
        evidence=("<|tool_call|>",),
        forms=(CallForm(shape="object", begin="<|tool_call|>", listed=True, between=", "),),
        dropped=("<response>", "</response>"),
    ),
    Dialect(
        name="nemotron",
        evidence=("<TOOLCALL>",),
        forms=(CallForm(shape="object", begin="<TOOLCALL>", listed=True, between=", ", end="</TOOLCALL>"),),
    ),
    Dialect(
        name="minimax-m1",
        evidence=("<tool_calls>",),
        forms=(CallForm(shape="object", begin="<tool_calls>\n", between="\n", end="\n</tool_calls>"),),
    ),
    Dialect(name="hermes", evidence=("<tool_call>",), forms=(HERMES,)),
    Dialect(name="llama-3", evidence=("ipython",), forms=(BARE_JSON,)),
)
# A template that shows no way to call: most models were trained on one of these two.
GENERIC = Dialect(name="generic", forms=(HERMES, replace(BARE_JSON, arguments_key="arguments")))

NAMES = (*(dialect.name for dialect in DIALECTS), GENERIC.name)


def dialect_named(name: str) -> Dialect:
    """Raises ConfigError for an unknown name."""
    for dialect in (*DIALECTS, GENERIC):
        if dialect.name == name:
            return dialect
    raise ConfigError(f"model.dialect: {name!r} is none of {', '.join(NAMES)}")


def recognised(template: str) -> Dialect:
    """The dialect of a chat template, with those kinds of reasoning only that the template knows how to end."""
    dialect = next((d for d in DIALECTS if all(text in template for text in d.evidence)), GENERIC)
    return replace(dialect, reasoning=tuple(pair for pair in dialect.reasoning if pair[1] in template))
