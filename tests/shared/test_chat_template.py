"""Chat templates like those of real models, against transformers' own rendering."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from chairlift.shared.chat_template import ChatTemplate
from chairlift.shared.errors import InvalidRequestError
from chairlift.shared.tokenizer import Tokenizer

_spec = importlib.util.spec_from_file_location(
    "tokenizers_of_tests", Path(__file__).with_name("test_tokenizer.py")
)
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module
_spec.loader.exec_module(_module)

TEMPLATES = {
    "chatml": (
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
        "{%- else %}\n    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}\n{%- endif %}\n"
        "{%- for message in messages %}\n"
        "    {%- if message.role != 'system' or not loop.first %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
        "    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    ),
    "headers": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' "
        "+ message['content'] | trim + '<|eot|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\\n\\n' }}{% endif %}"
    ),
    "instructions": (
        "{%- if messages[0]['role'] == 'system' %}"
        "{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
        "{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}"
        "{%- for message in turns %}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('roles must alternate') }}{%- endif %}"
        "{%- if message['role'] == 'user' %}"
        "{%- if loop.first and system is defined %}"
        "{{- '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}"
        "{%- else %}{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
        "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "lines": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\\n' + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
        "{% endif %}\n{% endfor %}"
    ),
}
CHATS: dict[str, list[dict[str, str]]] = {
    "one": [{"role": "user", "content": "the lift goes up"}],
    "spaces": [{"role": "user", "content": "  the hill \n"}],
    "system": [
        {"role": "system", "content": 'Be "brief" & <kind>.'},
        {"role": "user", "content": "im_start, 🚡 и 上"},
    ],
    "long": [
        {"role": "user", "content": "up"},
        {"role": "assistant", "content": "the hill"},
        {"role": "user", "content": "up the hill\n\nagain"},
    ],
    "empty": [{"role": "user", "content": ""}],
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_as_transformers(kind: str, template: str, chat: str) -> None:
    """Ordinary messages give exactly the ids that transformers gives."""
    backend = getattr(_module, kind)()
    config = {"chat_template": TEMPLATES[template], "bos_token": "<s>", "eos_token": "</s>"}
    ours = Tokenizer(backend.to_str().encode(), json.dumps(config).encode())
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, **config)
    for has_prompt in (True, False):
        expected: Any = theirs.apply_chat_template(
            CHATS[chat], add_generation_prompt=has_prompt, return_dict=False
        )
        got = ours.encode_chat(CHATS[chat], add_generation_prompt=has_prompt)
        assert got == list(expected)


def render(source: str, *contents: str) -> str:
    messages = [{"role": "user", "content": content} for content in contents]
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, add_generation_prompt=True)


def test_helpers() -> None:
    """Templates have what models' templates use: tojson, loop controls, dates, trimmed blocks."""
    assert render("{{ messages[0].content | tojson }}", "<é>'") == '"<é>\'"'
    assert render("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "a", "b") == "a"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% if true %}\nx\n{% endif %}\n") == "x\n"
    assert render("{{ bos_token }}") == "<s>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no systems here') }}",
        "{{ messages[7].content }}",
        "{{ messages[0].content + 5 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | map(attribute='x.y') | list | first | upper }}{{ nothing.at_all }}",
    ],
)
def test_refusals(source: str) -> None:
    """Whatever a template trips over, and every way out of the sandbox, refuses the messages."""
    with pytest.raises(InvalidRequestError) as error:
        render(source, "hello")
    assert error.value.param == "messages"


def test_named_templates() -> None:
    """Of several templates the default one counts."""
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    template = ChatTemplate.from_config({"chat_template": named})
    assert template.render([], add_generation_prompt=True) == "d"
