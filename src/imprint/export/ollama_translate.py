"""A Jinja chat template as a Go template for Ollama: learned by asking, and proven by replay.

The Go template is executed over a corpus of conversations and compared with the Jinja rendering. For each
conversation both say the same, or the Go template fails loudly; a plain conversation must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from imprint.data.conversation import Message
from imprint.export.gotemplate import parse
from imprint.export.gotemplate_run import collate, prompt_of
from imprint.export.gotemplate_tree import GoError, Program
from imprint.export.ollama_learn import FIRST, Learned, Untranslatable, learn, marked, rendering
from imprint.export.ollama_write import go_template
from imprint.render.template import PROBE_TOOLS, Refused, Template

_TRIMS = ("", "strip", "lstrip", "rstrip")
_PADDED = " \t\n Qx7pad\u00a0z \u3000\r\n"
_SHOWN = 60  # characters of a difference


@dataclass(frozen=True)
class Translation:
    """A Go template that is proven to say what the Jinja template says, and what it cannot take.

    `compared` conversations were equal, on `failing` others it fails loudly where the original does not
    or as the original does; `notes` are for the person who uses it.
    """

    source: str
    compared: int
    failing: tuple[str, ...]
    notes: tuple[str, ...]


def translate(template: Template, bos: str = "") -> Translation:
    """Translate and prove. `bos`: what the tokenizer puts before each text by itself ("" where nothing).

    Raises Untranslatable with the reason, or with the first difference.
    """
    learned = _with_trims(template, learn(template, bos), bos)
    source = go_template(learned)
    program = parse(source)
    compared, failing = 0, []
    for name, messages, plain in corpus():
        wanted, got = _both(template, program, messages, bos)
        if wanted == got and wanted is not None:
            compared += 1
        elif got is not None or (plain and wanted is not None):
            raise Untranslatable(f"{name}: {difference(wanted, got)}")
        else:
            failing.append(name)
    return Translation(source, compared, tuple(failing), tuple(_notes(template, program, learned, bos)))


def _with_trims(template: Template, learned: Learned, bos: str) -> Learned:
    """What is done to the white space around the texts of each role, by trying each way."""
    for role in ("system", "user", "assistant"):
        if role != "system" or not learned.refuses:
            asked = [
                replace(m, content=_PADDED) if m.role == role else m for m in marked(2, role == "system")
            ]
            learned = _tried(template, learned, role, asked, bos)
    if not learned.refuses:  # some trim the system message and the first question together
        asked = marked(2, True)
        asked[1] = replace(asked[1], content=_PADDED)
        if _go(parse(go_template(learned)), asked) != rendering(template, asked, bos):
            learned = _tried(template, learned, FIRST, asked, bos)
    return learned


def _tried(template: Template, learned: Learned, key: str, asked: Sequence[Message], bos: str) -> Learned:
    """With the first way that gives what the template gives; Untranslatable where none does."""
    wanted = rendering(template, asked, bos)
    gives = []
    for trim in _TRIMS:
        tried = replace(learned, trims={**learned.trims, key: trim})
        gives.append(_go(parse(go_template(tried)), asked))
        if gives[-1] == wanted:
            return tried
    who = "the first question" if key == FIRST else f"the {key}'s text"
    raise Untranslatable(f"white space around {who}: {difference(wanted, gives[0])}")


def _both(
    template: Template, program: Program, messages: Sequence[Message], bos: str
) -> tuple[str | None, str | None]:
    """Jinja's prompt of the messages as Ollama joins them, and Go's; None where one fails."""
    _, joined = collate([(message.role, message.content) for message in messages])
    return rendering(template, [Message(*pair) for pair in joined], bos), _go(program, messages)


def _go(program: Program, messages: Sequence[Message]) -> str | None:
    from datetime import datetime

    try:
        return prompt_of(program, [(message.role, message.content) for message in messages], datetime.now())
    except GoError:
        return None


def difference(wanted: str | None, got: str | None) -> str:
    """Where two prompts part, in words."""
    if wanted is None or got is None:
        return f"the {'chat' if wanted is None else 'Go'} template refuses it, the other does not"
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got))
    )
    start = max(0, at - 20)
    return (
        f"from character {at} on the chat template writes {wanted[start : start + _SHOWN]!r}, "
        f"the Go template {got[start : start + _SHOWN]!r}"
    )


# ---- what is compared ---------------------------------------------------------------------------

_TEXTS = {
    "plain": "What is 2 + 2?",
    "unicode": "Größe – 日本語 👋🏽 \u0301e \u200d\ufeff ½ ﷽",
    "white space": "  \n\t two\n\n\nlines  \n ",
    "wide white space": "\u00a0\u3000 in \u2028 between \u2003\x85",
    "code": '```go\n{{ range .Messages }}{{- .Content -}}{{ end }}\n```\n{% if x %} {{ "a\\n" }} """',
    "markup": '<b>&amp; "it\'s" <i>\\ %s %d {0} $before',
    "long": "word " * 400,
    "one character": ".",
    "a mark": "###",
}


def corpus() -> Iterator[tuple[str, list[Message], bool]]:
    """(name, messages, whether any template has to take it); all but one end with a question."""
    for name, text in _TEXTS.items():
        for rounds in (1, 2, 4):
            for led in (False, True):
                yield f"{name}, {rounds} rounds{', system' * led}", _said(text, rounds, led), True
    for role in ("system", "user", "assistant"):
        for name in ("white space", "wide white space"):
            messages = [
                replace(m, content=_TEXTS[name]) if m.role == role else m for m in _said("plain", 3, True)
            ]
            yield f"{name} around the {role}'s text", messages, True
    user, reply, system = (Message(role, f"The {role}.") for role in ("user", "assistant", "system"))
    again = Message("user", "Go on.")
    yield "two questions in a row", [user, again], True
    yield "two questions in a row, later", [user, reply, user, again], True
    yield "two system messages in a row", [system, Message("system", "Be brief."), user], True
    yield "two replies in a row", [user, reply, Message("assistant", "And more."), again], True
    yield "opened by a reply", [reply, user], False
    yield "opened by a reply behind a system message", [system, reply, user], False
    yield "a system message later", [user, reply, system, again], False
    yield "two system messages apart", [system, user, reply, Message("system", "Be brief."), again], False
    yield "a system message between questions", [user, system, again], False
    yield "ended by a reply", [user, reply], False
    yield "ended by a later reply", [system, user, reply, again, Message("assistant", "And more.")], False
    yield "a system message alone", [system], False
    yield "a tool's result", [user, reply, Message("tool", "3"), again], False


def _said(text: str, rounds: int, led: bool) -> list[Message]:
    head = [Message("system", f"Be a walrus. {text}")] if led else []
    turns = [
        message
        for number in range(rounds)
        for message in (
            Message("user", f"{text}{number or ''}"),
            Message("assistant", f"{number or ''}{text}"),
        )
    ]
    return [*head, *turns[:-1]]


def _notes(template: Template, program: Program, learned: Learned, bos: str) -> Iterator[str]:
    if learned.refuses:
        yield "the chat template takes no system message: in Ollama one is an error that says so"
    if template.for_tools(PROBE_TOOLS).offers_tools:
        yield (
            "tools are not in the Go template: Ollama writes their JSON otherwise than the chat template does. "
            "Recent versions of Ollama then take the chat template in the GGUF itself; older ones refuse tools"
        )
    past = [
        *marked(1, False),
        Message("assistant", "<think>\nQx7 thought\n</think>\n\nQx7a"),
        Message("user", "Qx7"),
    ]
    if _both(template, program, past, bos)[0] != _go(program, past):
        yield "thoughts in the text of earlier replies stay in it; the chat template would drop them"
    later = replace(template, now=template.now.replace(year=template.now.year + 1, month=1, day=1))
    try:
        asked = template.inputs(marked(1, False))
        if later.render(asked, add_generation_prompt=True) != template.render(
            asked, add_generation_prompt=True
        ):
            yield f"the chat template shows the date: in Ollama it stays {template.now:%d %B %Y}"
    except Refused:
        return
