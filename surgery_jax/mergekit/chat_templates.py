"""Chat templates that configurations name."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["NAMED"]

_CHATML = """\
{% for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_ALPACA = """\
{%- for message in messages -%}
{%- set text = message.content | trim -%}
{%- if message.role == 'system' %}{{ text + '\\n\\n' }}
{%- elif message.role == 'user' %}{{ '### Instruction:\\n' + text + '\\n\\n' }}
{%- elif message.role == 'user_context' %}{{ '### Input:\\n' + text + '\\n\\n' }}
{%- elif message.role == 'assistant' %}{{ '### Response:\\n' + text + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'assistant' %}{{ '### Response:\\n' }}{% endif %}"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_MISTRAL = """\
{{- bos_token -}}
{%- set talk = messages[1:] if messages[0].role == 'system' else messages -%}
{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- for message in talk -%}
{%- if message.role != ('user' if loop.index0 is even else 'assistant') -%}
{{ raise_exception('user and assistant take turns, and user comes first') }}
{%- elif message.role == 'user' %}{{ ' [INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content + eos_token }}
{%- endif -%}
{%- endfor -%}"""

_EXAONE = """\
{%- if messages[0].role != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif -%}
{%- for message in messages -%}
{{ '[|' + message.role + '|]' + message.content + ('\\n' if message.role == 'user' else '[|endofturn|]\\n') }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"""

NAMED: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
