"""Templates come from strangers: they render as transformers renders them, reach nothing, and end in time."""

import contextlib
import subprocess
import sys
import textwrap
import time

import pytest

from imprint.render import limits
from imprint.render.form import as_template_input
from imprint.render.template import Refused, Template
from render.corpus import CONVERSATIONS, NOW, TEMPLATES, label, needs_templates, template_source

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def rendered(source: str, **variables) -> str:
    return Template(source, "test", SPECIAL, NOW, variables).render([])


@pytest.fixture(scope="module")
def reference():
    """transformers' own renderer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


@needs_templates
@pytest.mark.parametrize("path", TEMPLATES, ids=label)
def test_renders_what_transformers_renders(path, reference):
    source, compared = template_source(path), 0
    template = Template(source, path.name, SPECIAL, NOW)
    for name, conversation in CONVERSATIONS.items():
        messages = [as_template_input(message) for message in conversation.messages]
        tools = list(conversation.tools)
        for i in range(1, len(messages) + 1):
            for generate in (False, True):
                try:
                    expected = reference(
                        [messages[:i]], tools=tools or None, chat_template=source,
                        add_generation_prompt=generate, **SPECIAL,
                    )[0][0]  # fmt: skip
                except Exception:
                    with pytest.raises(Refused):
                        template.render(messages[:i], tools, generate)
                    continue
                assert template.render(messages[:i], tools, generate) == expected, (name, i)
                compared += 1
    assert compared > 4


def test_one_program_gives_one_text_with_every_tag_that_transformers_has(reference):
    source = """
    {%- for i in range(9) -%}
        {%- if i == 2 %}{% continue %}{% endif -%}
        {%- if i == 5 %}{% break %}{% endif -%}
        {% generation %}<{{ i }}>{% endgeneration %}
    {%- endfor %}
    {{ {'b': '<é>', 'a': [1.5, none]}|tojson }} {{ {'b': 1, 'a': 2}|tojson(sort_keys=true, indent=2) }}
    {%- set ns = namespace(x='a', self=1) %}{% set ns.x = ns.x ~ 1 ~ none %}{{ ns.x + 'b' * 3 }}
    {{ strftime_now('%d %b %Y') }} {{ '%05d|%s' % (7, 'x') }} {{ '{:>4}'.format('y') }} {{ '%s'|format(3) }}
    {{ ['a', 'b']|join(', ') }} {{ ', '.join(['c', 'd']) }} {{ 'aXb'|replace('X', '-') }}
    {{ 'aXb'.replace('X', '+', 1) }}
    {{ 'é'|center(5) }}|{{ 'a\nb'|indent(2, first=true) }} {{ [1, 2, 3]|sum }} {{ 2.567|round(1) }} {{ 5|round }}
    {%- for part in [1, 2, 3]|batch(2, 0) %}{{ part }}{% endfor %} {{ dict(a=1) }} {{ 2 ** 10 }} {{ undefined_name }}
    {%- macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call m(1) %}!{% endcall %}{{ [none, true] }}
    {%- set block %}  {{ 1 + 2 }}{% endset %}{{ block|trim|string }}
    """
    expected = reference([[]], chat_template=source, **SPECIAL)[0][0]
    assert rendered(source) == expected
    assert "<0><1><3><4>" in expected
    assert "26 Jul 2025" in expected


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).__mro__ }}",
    "{{ ['']|map(attribute='__class__')|map(attribute='__base__')|list|first|string + 'object' }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ strftime_now.__closure__[0].cell_contents.now }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__class__.mro() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace({'_Namespace__attrs': 1}) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ range.__class__.mro() }}",
    "{{ (1).to_bytes(2, 'big') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{% import 'os' as os %}{{ os.system }}",
    "{% include '/etc/passwd' %}",
    "{{ lipsum.__globals__ }}",
    "{{ ''|random }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_refused(source):
    with contextlib.suppress(Refused):
        assert rendered(source) == ""  # Jinja shows some of what it refuses as nothing


def test_a_failing_template_is_a_refusal_with_a_short_reason():
    for source in ("{{ 1 / 0 }}", "{{ raise_exception('x' * 999) }}", "{{ none.x.y }}", "{{ [].index(3) }}"):
        with pytest.raises(Refused) as failure:
            rendered(source)
        assert len(str(failure.value)) <= 200


LOOPS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x=0) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% set n.x = (n.x + 1) % 7 %}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", LOOPS)
def test_endless_loops_end_and_say_so(source, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    start = time.thread_time()  # as the limit: a loaded machine changes nothing
    with pytest.raises(Refused, match="did not finish in time"):
        rendered(source)
    assert time.thread_time() - start < 2
    assert rendered("{{ 1 }}") == "1"  # and the next rendering is not hit


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no clock of one thread")
def test_a_rendering_that_only_waits_is_not_out_of_time(monkeypatch):
    """The machine may be busy with other things for any time: what counts is what the template computes."""
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    assert rendered("{{ wait(0.4) }}done", wait=lambda seconds: time.sleep(seconds) or "") == "done"


def test_the_limit_in_use_is_about_five_seconds():
    assert 1 <= limits.SECONDS <= 5


EXPLOSIONS = [
    "{{ 'a' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' % 1.0 }}",
    "{{ '%(x)1000000000s' % {'x': 1} }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ range(99999)|join('a' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(99999)|map('string')) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ range(10000000000)|list }}",
    "{{ ('\\n' * 1000000)|indent(100000) }}",
    "{{ [[1]]|tojson(indent=1000000000) }}",
    "{{ [['a' * 1000000] * 100000]|tojson }}",
    "{{ ['a' * 1000000] * 100000 }}",
    "{{ (['a' * 1000000] * 100000)|string }}",
    "{{ [1]|batch(10000000000, 'x')|list }}",
    "{{ [1]|slice(10000000000)|list }}",
    "{{ ([[1]] * 1000000)|sum(start=[])|length }}",
    "{{ 5|round(-1000000000) }}",
    "{{ strftime_now('%9999999Y' * 1000000) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}" + "a" * 99 + "{% endfor %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{% for j in range(999) %}{{ '' }}{% endfor %}{% endfor %}{% endset %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [range(99999)|list] %}{% endfor %}",
    "{% set b = 'a' * 9000000 %}{{ ([b] * 99999)|map('upper')|list|length }}",
]


def test_explosions_are_refused_and_eat_no_memory():
    """In a process of its own that may have 2 GiB; none may come so far that Python runs out of them."""
    pytest.importorskip("resource")
    script = f"""
        import resource
        from datetime import datetime
        from imprint.render.template import Refused, Template
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        for source in {EXPLOSIONS!r}:
            try:
                Template(source, "x", {{}}, datetime.now()).render([])
                print("RENDERED", source)
            except Refused as refused:
                if "MemoryError" in str(refused):
                    print("LATE", source, refused)
        print("all refused in time")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600
    )
    assert (run.stderr, run.stdout) == ("", "all refused in time\n")


def test_what_is_large_but_legitimate_is_rendered():
    text = "wörd " * 200_000
    source = (
        "{% for m in messages %}{{ '<' + m.content.strip() ~ '>' }}{% endfor %}{{ messages|tojson|length }}"
    )
    out = Template(source, "t", {}, NOW).render([{"role": "user", "content": text}] * 3)
    assert len(out) > 2_999_990


def test_threads_are_limited_on_their_own(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(limits, "SECONDS", 0.4)

    def one(i):
        try:
            return rendered(LOOPS[0] if i % 2 else "{{ 1 }}")
        except Refused as refused:
            return str(refused)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == ["1", "the template did not finish in time"] * 2


def test_methods_with_a_limit_work_inside_loops():
    """Jinja hands every call inside a loop the loop's variables as a keyword of its own."""
    source = (
        "{% for m in messages %}{% set x = m.content %}{{ x.replace('a', 'b') }}{{ ','.join(x) }}{% endfor %}"
    )
    assert Template(source, "test", {}, NOW).render([{"role": "user", "content": "aa"}]) == "bba,a"
