"""Chat templates of common families on the tiny tokenizer, with the families' control tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer

import cepo.tiny
from cepo.prompts.renderer import Renderer

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA3 = """{{- '<|begin_of_text|>' }}{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
GEMMA = """{%- for message in messages %}{%- if message.role == 'system' %}
{{- raise_exception('System role not supported') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""
MISTRAL = """{{- '<s>' }}{%- for message in messages %}{%- if message.role == 'user' %}
{%- if loop.last and messages[0].role == 'system' %}{{- '[INST] ' + messages[0].content + '\\n\\n' + message.content }}
{%- else %}{{- '[INST] ' + message.content }}{%- endif %}{{- '[/INST]' }}{%- elif message.role == 'assistant' %}
{{- ' ' + message.content + '</s>' }}{%- endif %}{%- endfor %}"""
PHI3_OLD = """{{- '<s>' }}{%- for message in messages %}{%- if message.role == 'user' %}
{{- '<|user|>\\n' + message.content + '<|end|>\\n<|assistant|>\\n' }}{%- elif message.role == 'assistant' %}
{{- message.content + '<|end|>\\n' }}{%- endif %}{%- endfor %}"""
QWEN3 = """{%- for message in messages %}{%- if message.role == 'assistant' and '</think>' in message.content %}
{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}{%- else %}{%- set content = message.content %}
{%- endif %}{{- '<|im_start|>' + message.role + '\\n' + content }}
{%- for call in message.tool_calls or [] %}{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
PARTS = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- for part in message.content if part.type == 'text' %}{{- part.text }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
DEEPSEEK = """{{- '<|begin|>' }}{%- for message in messages %}{%- if message.role == 'system' %}{{- message.content }}
{%- elif message.role == 'user' %}{{- '<|User|>' + message.content }}{%- else %}
{{- '<|Assistant|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"""
TOOLS = """{%- if tools %}{{- '<|im_start|>system\\nTools:' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

TEMPLATES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "chatml": (CHATML, (), ()),
    "llama3": (LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), ()),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), ()),
    "phi3": (PHI3_OLD, ("<s>", "<|user|>", "<|assistant|>", "<|end|>"), ()),
    "qwen3": (QWEN3, (), ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    "parts": (PARTS, (), ()),
    "deepseek": (DEEPSEEK, ("<|begin|>", "<|end|>"), ("<|User|>", "<|Assistant|>", "<think>", "</think>")),
    "tools": (TOOLS, (), ("<tool_call>", "</tool_call>")),
}
"""Template, special tokens and other added tokens by family."""
WITHOUT_SYSTEM = ("gemma", "phi3")


def saved(folder: Path, template: Any, special: tuple[str, ...] = (), added: tuple[str, ...] = (), **eos: str) -> str:
    """Saves the tiny tokenizer with a template and more tokens; returns the folder's name."""
    tokenizer = AutoTokenizer.from_pretrained(str(cepo.tiny.path()), **eos)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in added])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return str(folder)


def renderer_of(folder: Path, family: str) -> Renderer:
    """A renderer with a family's template."""
    return Renderer(saved(folder, *TEMPLATES[family]))
