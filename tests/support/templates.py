"""Short chat templates that each have a habit of a public family: what they refuse, which forms they read."""

_CHATML_CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)

TEMPLATES = {
    # content is a string, arguments are objects
    "chatml": (
        "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + _CHATML_CALLS + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    # text parts or a string, one system message first
    "vision": (
        "{% macro text(c) %}{% if c is string %}{{ c }}{% elif c is iterable and c is not mapping %}"
        "{% for p in c %}{{ p.text }}{% endfor %}{% elif c is none or c is undefined %}"
        "{% else %}{{ raise_exception('bad content') }}{% endif %}{% endmacro %}"
        "{{ tools | tojson if tools }}"
        "{% for m in messages %}"
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message first') }}{% endif %}"
        "<{{ m.role }}>{{ text(m.content) }}"
        "{% for c in m.tool_calls or [] %}<function={{ c.function.name }}>"
        "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>{{ v }}</parameter>{% endfor %}"
        "</function>{% endfor %}</{{ m.role }}>\n{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
    ),
    # text parts only
    "parts only": (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
        "{% endfor %}{% for c in m.tool_calls or [] %}{{ c.function | tojson(ensure_ascii=true) }}{% endfor %}\n"
        "{% endfor %}{{ '[assistant]' if add_generation_prompt }}"
    ),
    # roles alternate, ids have nine characters, content beside calls is null, text is trimmed
    "alternating": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% set ns = namespace(u=false) %}"
        "{% for m in rest %}{% if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}"
        "{% if m.role == 'user' and ns.u %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set ns.u = m.role == 'user' %}{% elif m.role == 'system' %}{{ raise_exception('no') }}"
        "{% elif m.role == 'assistant' %}{% set ns.u = false %}{% endif %}"
        "{% if m.role == 'user' %}[INST]{{ tools | tojson if tools and loop.last }}"
        "{% if system is defined and loop.last %}"
        "{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% elif m.tool_calls is defined and m.content is none %}[TOOL_CALLS]["
        "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}"
        '{{ c.function | tojson }} {{ c.id }}{{ ", " if not loop.last }}{% endfor %}]{{ eos_token }}'
        "{% elif m.role == 'assistant' %}{{ m.content | trim }}{% for c in m.tool_calls or [] %} {{ c.function.name }}"
        "{% endfor %}{{ eos_token }}"
        "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have length 9') }}"
        "{% endif %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
        "{{ system if system is defined and rest[-1].role != 'user' }}"
    ),
    # one call a message
    "single call": (
        "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
        "{{ raise_exception('only single tool-calls') }}{% endif %}{% set f = m.tool_calls[0].function %}"
        '<|header|>{{ m.role }}\n{{ m.content }}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
        "<|eom|>"
        "{% else %}<|header|>{{ m.role }}\n{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}"
        "{{ '<|header|>assistant\n' if add_generation_prompt }}"
    ),
    # no system role
    "no system": (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        + _CHATML_CALLS
        + "<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' if add_generation_prompt }}"
    ),
    # calls print their arguments as text and vanish beside a content
    "argument text": (
        "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}"
        "{% for c in m['tool_calls'] %}<call>{{ c['function']['name'] + '\n' + c['function']['arguments'] }}</call>"
        "{% endfor %}{% else %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] if m.content %}"
        "{{ c.function.name }}{% endfor %}{% endif %}{% endfor %}"
    ),
    # developer and system are one section, reasoning is `thinking`, the result names its function
    "channels": (
        "{% set dev = ['system', 'developer'] %}{% for m in messages %}{% if m.role in dev %}"
        "<|start|>developer<|message|>{{ m.content }}<|end|>{% elif m.role == 'assistant' %}"
        "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}<|channel|>commentary to=functions.{{ c.name }}"
        "<|message|>{{ c.arguments | tojson }}<|call|>{% endif %}{{ '<|channel|>final<|message|>' ~ m.content }}<|end|>"
        "{% elif m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{{ '<|start|>assistant' if add_generation_prompt }}{{ reasoning_effort }}"
    ),
}

# What these leave out or refuse is most of what a client may send.
SPARSE_TEMPLATES = {
    # no tools, roles as they are
    "roles only": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe nice.<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    ),
    # a later system message vanishes, so do tools and calls; results are known
    "first system": (
        "<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' else 'Be nice.' }}<|im_end|>\n"
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
        "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content.lstrip() }}<|im_end|>\n"
        "{% elif m.role == 'tool' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    ),
    # the last system message is the one, calls vanish beside a content, thoughts are not read again
    "last system": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = m.content %}{% endif %}{% endfor %}<s>{{ ns.system }}{% for m in messages %}"
        "{% if m.role == 'user' %}<User>{{ m.content }}{% elif m.role == 'tool' %}<Output>{{ m.content }}"
        "{% elif m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}<Call>{{ c.function.name }}"
        "\n{{ c.function.arguments | tojson }}{% endfor %}{% elif m.role == 'assistant' %}<Assistant>"
        "{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}"
        "{{ '<Assistant><think>' if add_generation_prompt }}"
    ),
    # user and assistant by turns and nothing else
    "strict turns": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>{{ m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' if add_generation_prompt }}"
    ),
    # tools are listed unasked and need descriptions; text beside calls vanishes
    "tools unasked": (
        "<tools>{% for t in tools %}{{ '\n' + t.function.name + ': ' + t.function.description }}"
        "{% for k, v in t.function.parameters.properties.items() %}{{ ' ' + k + ' ' + v.description }}{% endfor %}"
        "{% endfor %}</tools>{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{% for c in m.tool_calls %}"
        '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
        "\n</tool_call>{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    # a user has to be there, empty answers may not, results only behind calls, arguments are objects
    "demanding": (
        "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
        "{{ raise_exception('No user query') }}{% endif %}{% set ns = namespace(asked=false, last='') %}"
        "{{ tools | tojson if tools }}{% for m in messages %}"
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message first') }}{% endif %}"
        "{% if m.role == 'tool' and not ns.asked %}{{ raise_exception('no call before') }}{% endif %}"
        "{% if m.role == 'assistant' %}{% set ns.asked = m.tool_calls is defined %}"
        "{% if not (m.content or m.tool_calls) %}{{ raise_exception('an empty answer') }}{% endif %}"
        "{% endif %}{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
        "{% if m.role == ns.last or not ns.last and m.role == 'assistant' %}{{ raise_exception('turns') }}{% endif %}"
        "{% set ns.last = m.role %}{% endif %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<{{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
        "<{{ k }}>{{ v }}{% endfor %}{% endfor %}{% endfor %}"
        "{{ '[assistant]' if add_generation_prompt }}"
    ),
    # documents and names are known, of a document its text
    "documents": (
        "{% for d in documents or [] %}<document>{{ d.text }}</document>{% endfor %}"
        "{% for m in messages %}<{{ m.role }}{{ ' name=' ~ m.name if m.name }}>{{ m.content }}{% endfor %}"
    ),
}
