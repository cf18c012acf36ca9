"""Chat templates with the features of released families, and chats that use them.

The texts are our own; the comment above each says which features of which family it has.
"""

from typing import Any

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<img>"}
PROMPT = "{% if add_generation_prompt %}<a>{% endif %}"
TEMPLATES = {
    # Qwen 3: tools as a line of JSON each, answers with calls, reasoning cut out of older turns by
    # a namespace that looks backwards, an empty block of it where thinking is off.
    "qwen3": """
{%- if tools %}
    {{- '[sys]' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '[/sys]\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '[sys]' + messages[0].content + '[/sys]\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '[' + message.role + ']' + content + '[end]\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '[a]<think>\\n' + thought.strip('\\n') + '\\n</think>\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '[a]' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}' }}
        {%- endfor %}
        {{- '[end]\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '[user]' }}{% endif %}
        {{- '<result>' + content + '</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '[end]' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[a]' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    # Llama 3.1 to 3.3: names that a caller may give or not, set in branches; a date; tools in the
    # first user's message; one call an answer, or an exception; content trimmed.
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "[system]Today: " + date_string + "\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "[eot]" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("no first user message") }}
    {%- endif %}
    {{- '[user]' -}}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first + "[eot]" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + ']' + message['content'] | trim + '[eot]' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("only one call at once") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '[assistant]{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}[eot]" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "[ipython]" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}""",
    # Gemma 3: no role of its own for the system, lists of parts, roles that must take turns.
    "gemma3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must take turns: user/assistant/user/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '[' + role + ']\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ image_token }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '[end]\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[model]\n' }}{%- endif -%}""",
    # Mistral: groups of messages, the last one of a user marked by a loop, ids of calls checked.
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- for call in message.tool_calls %}
            {%- if call.id is defined and call.id|length != 9 %}
                {{- raise_exception("ids of calls have 9 characters") }}
            {%- endif %}
            {{- call.function|tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[RESULT] {"content": ' + content|string + "}" }}
    {%- endif %}
{%- endfor %}""",
    # DeepSeek V3: one namespace of flags through the whole loop, reasoning split off, prefixes.
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = 0 %}
{%- endif %}
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(first=false, last_user=false, system='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- set ns.system = ns.system + ('' if not ns.first else '\n\n') + message['content'] %}
{%- set ns.first = true %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.last_user = true -%}{{ '<U>' + message['content'] }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {%- if ns.last_user %}{{ '<A>' }}
            {%- if message['prefix'] is defined and message['prefix'] and thinking %}{{ '<think>' }}
            {%- else %}{{ '</think>' }}{%- endif %}
        {%- endif %}
        {%- set ns.last_user = false -%}
        {%- set content = message['content'] or '' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] %}
        {%- endif %}
        {{- content }}{{ eos_token }}
    {%- endif %}
{%- endfor -%}
{%- if add_generation_prompt and ns.last_user %}{{ '<A>' }}
    {%- if not thinking %}{{ '</think>' }}{%- else %}{{ '<think>' }}{% endif %}
{%- endif %}""",
    # gpt-oss: macros that write types, an effort, channels, "thinking" of messages, today's date.
    "gpt-oss": """
{%- macro kind(spec) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}{{ kind(spec['items']) + '[]' }}{%- else -%}any[]{%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string -%}
        {{ spec.type | join(" | ") }}
    {%- elif spec.enum -%}{{ spec.enum | map("tojson") | join(" | ") }}
    {%- elif spec.type == "object" -%}
        {{ "{" }}{%- for name, inner in spec.properties | default({}, true) | dictsort -%}
            {{ name }}{{ "" if name in (spec.required or []) else "?" }}: {{ kind(inner) }};
        {%- endfor -%}{{ "}" }}
    {%- else -%}{{ spec.type }}{%- endif -%}
{%- endmacro -%}
{%- if not reasoning_effort is defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
{{- "<|sys|>Date: " + strftime_now("%Y-%m") + "\\nReasoning: " + reasoning_effort + "\\n" }}
{%- set instructions = '' %}
{%- if messages[0].role in ['developer', 'system'] %}
    {%- set instructions = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if instructions or tools %}
    {{- "<|dev|>" + instructions }}
    {%- for tool in tools or [] %}
        {{- "// " + tool.function.description + "\\n" + tool.function.name }}
        {{- "(" + kind(tool.function.parameters) + ");\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "thinking" in message and "tool_calls" in message %}
            {{- "<|ch|>analysis<|m|>" + message.thinking + "<|end|>" }}
            {%- set call = message.tool_calls[0].function %}
            {{- "<|ch|>to=" + call.name + "<|m|>" + call.arguments|tojson + "<|call|>" }}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|ch|>analysis<|m|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|ch|>final<|m|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|ch|>final<|m|>" + message.content + "<|end|>" }}
        {%- endif %}
    {%- else -%}
        {{- "<|" + message.role + "|>" + message.content | string + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|a|>{%- endif -%}""",
    # SmolLM 3: answers marked for training, a mode in the system's message, flags of the message.
    "smollm3": """
{#- defaults -#}
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- if messages[0].role == "system" -%}
    {%- set system = messages[0].content -%}
    {%- if "/no_think" in system -%}{%- set mode = "/no_think" -%}
    {%- elif "/think" in system -%}{%- set mode = "/think" -%}{%- endif -%}
    {%- set custom = system.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "[system]" + mode + "\n" }}
{%- if custom -%}{{ custom + "\n\n" }}{%- endif -%}
{%- if xml_tools or python_tools -%}
    {{- "### Tools\n" -}}
    {%- for tool in (xml_tools or []) + (python_tools or []) -%}
        {{- tool | string + "\n" -}}
    {%- endfor -%}
{%- endif -%}
{%- for message in messages if message.role != "system" -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "assistant" -%}
        {% generation %}
        {%- if mode == "/think" -%}
            {{ "[assistant]" + content.lstrip("\n") + "[end]" + "\n" }}
        {%- else -%}
            {{ "[assistant]<think>\n\n</think>\n" + content.lstrip("\n") + "[end]" + "\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- else -%}
        {{ "[" + message.role + "]" + content + "[end]\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}[assistant]
    {{- "<think></think>" if mode == "/no_think" }}
{%- endif -%}
""",
    # Granite 3 and 4: documents, tools as one list of JSON, controls.
    "granite": """{%- if documents %}
  {%- set docs %}{% for d in documents %}<doc {{ loop.index }}>{{ d.title }}
{{ d['text'] }}</doc>
{% endfor %}{% endset %}
{%- endif %}
{%- if tools %}<tools>{{ tools | tojson(indent=2, ensure_ascii=true) }}</tools>
{% endif %}
{%- if docs %}{{ docs }}{% endif %}
{%- for message in messages %}
  {%- if loop.first and message.role != 'system' %}<sys>default{% endif %}
  {{- '<' ~ message.role ~ '>' ~ message.content ~ eos_token ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant' }}
  {%- if controls %}{{ ' ' + controls | tojson(sort_keys=true, separators=(',', ':')) }}{% endif %}
  {{- '>' }}{% endif %}""",
    # GLM 4.5: loops left early, a turn marked by its beginning alone, thinking switched by text.
    "glm4": """[gMASK]<sop>
{%- if tools -%}<|system|>{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}{%- endif -%}
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}
            {%- elif item is string -%}{{- item }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}
{%- endif %}{%- endfor %}
{%- for m in messages[::-1] %}{% if m.role == 'user' %}<last {{ visible(m.content) }}>{% break %}
{%- endif %}{% endfor %}
{% for m in messages %}
{%- if m.role == 'system' %}{% continue %}{% endif %}
{%- if m.role == 'user' -%}<|user|>
{{ visible(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking
                   and not visible(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}<|assistant|>
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if loop.index0 > ns.last_user_index and thought -%}
{{ '\n<think>' + thought.strip() + '</think>'}}{%- else -%}{{ '\n<think></think>' }}{%- endif -%}
{%- if visible(m.content).strip() -%}{{ '\n' + visible(m.content).strip() }}{%- endif -%}
{%- for tc in m.tool_calls or [] %}{% set tc = tc.function or tc %}
{{ '\n<call>' + tc.name }}
{% set _args = tc.arguments %}{% for k, v in _args.items() %}<k>{{ k }}</k><v>
{{- v | tojson(ensure_ascii=False) if v is not string else v }}</v>
{% endfor %}</call>{% endfor %}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{{- '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}""",
    # MiniMax M2 and Kimi K2: keys in order, a role by name, whatever the mapping calls its items.
    "kimi": """{% if tools -%}<|tools|>{{ tools|tojson(separators=(',', ':')) }}<|end|>{% endif -%}
{%- for message in messages -%}
  {%- if loop.first and messages[0]['role'] != 'system' -%}<|system|>You help.<|end|>{%- endif -%}
  {%- set name = message.get('name') or message['role'] -%}
  <|{{ message['role'] }}|>{{ name }}<|middle|>
  {%- if message['content'] is string -%}{{ message['content'] }}
  {%- elif message['content'] -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] in ['image', 'image_url'] -%}<image>
      {%- else -%}{{ part['text'] }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- for call in message.get('tool_calls') or [] -%}
    <|call|>{{ call['function']['name'] }}<|args|>
    {%- if call['function']['arguments'] is string -%}{{ call['function']['arguments'] }}
    {%- else -%}{{ call['function']['arguments'] | tojson }}{%- endif -%}
  {%- endfor -%}
  <|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>assistant<|middle|>{%- endif -%}""",
    # What no family may miss of the environment: dict, its fromkeys, filters, undefined names.
    "environment": "{{ dict.fromkeys(['x', 'y'], 0) | tojson }}{{ dict(a=1).items() | list }}"
    "{% set d = dict(m=messages[0].role) %}{{ d.m }}{{ no }}{{ messages | map(attribute='role')"
    " | unique | join(',') }}{{ '%s|%05.1f' | format('a', 2.5) }}{{ 7 // 2 }}{{ [1, 2] + [3] }}"
    "{{ cycler('a', 'b').next() }}{{ range(3) | list }}{{ 'x' is upper }}{{ messages[0] | tojson }}"
    "{% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}{{ 1.0 | tojson }}"
    "{{ messages | length | string | safe }}{{ '<é\u2028>' | e | tojson }}{{ joiner('-')() }}"
    "{{ {'b': [1, none, true], 'a': 'é\"'} | tojson(sort_keys=True) }}" + PROMPT,
}  # fmt: skip

USER = {"role": "user", "content": 'What’s  the <weather> & "news"? \n'}
SYSTEM = {"role": "system", "content": " Be brief. /no_think"}
ANSWER = {"role": "assistant", "content": " It’s <b>é</b> fine.\n"}
THOUGHT = {"role": "assistant", "content": "Sun.", "reasoning_content": "\nLet me\nsee."}
CALL = {
    "role": "assistant",
    "content": None,
    "thinking": "I call.",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "x": None}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"t": 21.5}'}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Look! "}]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a “city” <now> & later",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "e.g. 'Genève'"},
                    "days": {"type": ["integer", "null"]},
                    "units": {"enum": ["°C", "°F"]},
                    "hours": {"type": "array", "items": {"type": "number"}},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}},
]
DOCUMENTS = [{"title": "A “title”", "text": "One.\nTwo."}, {"title": "B", "text": "Three"}]
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a question": ([USER], {}),
    "behind a system": ([SYSTEM, USER], {}),
    "turns": ([SYSTEM, USER, ANSWER, USER, THOUGHT, USER], {}),
    "tools": ([SYSTEM, USER], {"tools": TOOLS}),
    "no tools": ([USER], {"tools": []}),
    "a call": ([USER, CALL, RESULT], {"tools": TOOLS}),
    "a call with text": ([USER, {**CALL, "content": "So:"}, RESULT, RESULT], {"tools": TOOLS}),
    "answered calls": ([USER, CALL, RESULT, ANSWER, USER], {"tools": TOOLS}),
    "thinking off": ([USER, THOUGHT, USER], {"enable_thinking": False}),
    "thinking on": ([USER, ANSWER, USER], {"enable_thinking": True, "thinking": True}),
    "little effort": ([USER], {"reasoning_effort": "low"}),
    "documents": ([USER], {"documents": DOCUMENTS, "controls": {"length": "long", "b": [1]}}),
    "parts": ([SYSTEM, PARTS, ANSWER, PARTS], {}),
    "other names": (
        [USER, {"role": "assistant", "reasoning": "Hm.", "content": "x"}, USER],
        {"date_string": "1 May", "xml_tools": ["a <tool>"], "custom_tools": TOOLS},
    ),
    "a prefilled answer": ([USER, ANSWER], {"continue_final_message": True}),
    "prefilled reasoning": (
        [USER, {**THOUGHT, "content": ""}], {"continue_final_message": "reasoning_content"}
    ),
    "a prefilled part": ([USER, {**PARTS, "role": "assistant"}], {"continue_final_message": True}),
    "prefilled with tools": (
        [SYSTEM, USER, {"role": "assistant", "content": "The weather is"}],
        {"tools": TOOLS, "enable_thinking": False, "continue_final_message": True},
    ),
    "two of one role": ([USER, USER], {}),
}  # fmt: skip
