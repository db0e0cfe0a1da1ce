"""Chat templates like those of real models, against transformers' own rendering."""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from chairlift.shared import bounded_template
from chairlift.shared.chat_template import ChatTemplate
from chairlift.shared.errors import InvalidRequestError, ModelError
from chairlift.shared.tokenizer import Tokenizer
from tests.chat_templates import ALL_OF_A_LOOP, LLAMA, MISTRAL, QWEN3, SMOLLM

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
TEMPLATES |= {
    "llama": LLAMA,
    "qwen": QWEN3,
    "mistral": MISTRAL,
    "smollm": SMOLLM,
    "a loop": ALL_OF_A_LOOP,
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
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].__class__.mro() }}",
        "{{ dict.mro() }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ (5).to_bytes(10 ** 9, 'big') }}",
        "{{ 'x'.encode('punycode') }}",
        "{{ 'x'.translate({120: 'y'}) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ dict.update(messages[0], {'content': 1}) }}",
        "{% include 'other' %}",
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


LINE = "{% set b = 'x' * 500000 %}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}"
GROWING = {
    "loops": f"{LOOPS}{ENDS}",
    "output in loops": f"{LOOPS}x{ENDS}",
    "a long text in a loop": f"{{% for a in range(99999) %}}{'x' * 50_000}{{% endfor %}}",
    "a long text captured": f"{{% set y %}}{LOOPS}{'x' * 50_000}{ENDS}{{% endset %}}",
    "a loop that lets nothing pass": (
        "{% set l = range(30000) | list %}{% for x in range(99999) if -1 in l %}{% endfor %}"
    ),
    "a filter that lets nothing pass": (
        "{% set l = range(30000) | list %}{{ l | select('in', [-1] * 20000) | list }}"
    ),
    "a loop that calls itself": (
        "{% for a in range(9) recursive %}{% if loop.depth < 20 %}{{ loop(range(9)) }}{% endif %}"
        "{% endfor %}"
    ),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion of a loop": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "macros": "{% macro f0() %}{% endmacro %}"
    + "".join(
        f"{{% macro f{i + 1}() %}}{{{{ f{i}() }}}}{{{{ f{i}() }}}}{{% endmacro %}}"
        for i in range(60)
    )
    + "{{ f60() }}",
    "blocks": "".join(
        f"{{% block b{i} %}}{{{{ self.b{i + 1}() }}}}{{{{ self.b{i + 1}() }}}}{{% endblock %}}"
        for i in range(60)
    )
    + "{% block b60 %}{% endblock %}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set x = 'x' %}" + "{% set x = x ~ x %}" * 60,
    "doubling by output": "{% set x = 'x' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "lists of lists": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x == 1 }}",
    "dicts of dicts": "{% set x = 1 %}" + "{% set x = {1: x, 2: x} %}" * 60 + "{{ x | tojson }}",
    "dicts by name": "{% set x = 1 %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x | string }}",
    "views": "{% set x = {} %}" + "{% set x = {1: x.items(), 2: x.items()} %}" * 60 + "{{ x }}",
    "namespaces": "{% set x = 1 %}" + "{% set x = namespace(a=x, b=x) %}" * 60 + "{{ x | string }}",
    "times": "{{ 'x' * 1000000000 }}",
    "times, turned": "{{ 1000000000 * [1] }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "indent JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "replace": LINE + "{{ b | replace('x', b) }}",
    "replace, the method": LINE + "{{ b.replace('x', b) }}",
    "replace a block": f"{{% filter replace('x', 'y' * 900000) %}}{'x' * 9000}{{% endfilter %}}",
    "join": LINE + "{{ range(9999) | join(b) }}",
    "join, the method": LINE + "{{ b.join(range(9999) | map('string')) }}",
    "join much": LINE + "{{ ([b] * 9999) | join }}",
    "kept lists": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}"
    "{% set ns.x = ns.x + [range(30000) | list] %}{% endfor %}",
    "kept slices": LINE + "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x + [b[1:]] %}{% endfor %}",
    "kept copies": "".join(f"{{% set ns{i} = namespace() %}}" for i in range(99))
    + LINE
    + "".join(f"{{% set ns{i % 99}.x{i} = b.upper() %}}" for i in range(2000)),
    "sorting": "{% for i in range(9999) %}{% set x = range(30000) | list | sort %}{% endfor %}",
}


TIMED = {"loops", "macros", "blocks", "a loop that calls itself", "sorting"} | {
    f"a {what} that lets nothing pass" for what in ("loop", "filter")
}


@pytest.mark.parametrize("name", GROWING)
def test_limits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run or grow without end is stopped early, and told as the template's fault."""
    monkeypatch.setattr(bounded_template, "MAX_CPU_S", 0.2)
    template = ChatTemplate(GROWING[name], {})
    start = time.thread_time()
    before = peak_mib()
    with pytest.raises(InvalidRequestError, match="was stopped") as error:
        template.render([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    assert error.value.code == "chat_template_limit" and error.value.param == "messages"
    assert name not in TIMED or "more than 0.2 s" in str(error.value)
    assert time.thread_time() - start < 10  # without limits it would be minutes
    assert peak_mib() - before < 700


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_limits_grow_with_the_input() -> None:
    """A long chat is nothing that a template could be blamed for."""
    content = "x" * 1_000_000
    assert len(render(QWEN3, *[content] * 8)) > 8_000_000
    with pytest.raises(InvalidRequestError, match="was stopped"):
        render("{{ messages[0].content * 9 }}", content)
    many = render(LLAMA, *["hello"] * 4096)
    assert many.count("hello") == 4096


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}"
        "{% endfor %}{{ ns.t }}",
        "{% for m in messages %}{% for n in messages[loop.index:] %}{{ n.name }}{% endfor %}"
        "{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if messages | selectattr('role', 'equalto', 'user') | first %}"
        "{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_collecting_templates(source: str) -> None:
    """Hundreds of messages may be collected in one text, or each be looked at for each."""
    assert len(render(source, *["x" * 2000] * 400)) == 800_000


@pytest.mark.parametrize("template", TEMPLATES)
def test_long_chats(template: str) -> None:
    """A thousand messages take a fraction of the time, and of the memory, that a rendering has."""
    if template == "a loop":
        pytest.skip("it repeats all messages for each")
    roles = [{"role": "user"}, {"role": "assistant"}]
    messages = [roles[i % 2] | {"content": "x" * 1000} for i in range(1000)]
    source = ChatTemplate(TEMPLATES[template], {"bos_token": "<s>", "eos_token": "</s>"})
    start = time.thread_time()
    text = source.render(messages, add_generation_prompt=True)
    assert text.count("x") >= 1_000_000 and time.thread_time() - start < 10


def test_renderings_share_nothing() -> None:
    """What one rendering has used up is not missing for the next, at the same time or later."""
    template = ChatTemplate("{{ messages[0].content * 60 }}", {})
    message = {"role": "user", "content": "x" * 15_000}

    def once(_: int) -> int:
        return len(template.render([message], add_generation_prompt=True))

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(once, range(200))) == {900_000}


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "{{ " + "not " * 20_000 + "1 }}",
        "{% for x in y %}" * 30 + "{% endfor %}" * 30,
        "{{ 'x' | center(1000000000) }}",
        "{% if %}",
    ],
)
def test_sources_that_are_no_template(source: str) -> None:
    """What can't be compiled is the model's fault, found when it is loaded."""
    with pytest.raises(ModelError, match="can't be compiled"):
        ChatTemplate(source, {})


def test_long_reasons_are_cut() -> None:
    """A template's own words become part of an answer, a million of them don't."""
    with pytest.raises(InvalidRequestError) as error:
        render("{{ raise_exception('no' * 400000) }}")
    assert len(str(error.value)) < 2000
