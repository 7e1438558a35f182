"""docs/templates.md: what every template accepts and why it leaves out the rest, from a run of the harness."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from render import markdown
from render.cells import CALLS, KINDS, PLAIN, Outcome, conversations, run
from render.corpus import TEMPLATES, controls_of, fixed_clock, label, template_source

PLAIN_SHARE, TOOLS_SHARE = 0.9, 0.8  # of the templates: what is to be reached
SHOWN = "bytes"  # the tokenizer of the tables by template: the others give the same, where they can write the text

# a template that reads a list of tools, or writes the calls of a reply
_KNOWS_TOOLS = re.compile(r"\btools\b|for \w+ in [^%]*tool_calls")
_ORIGINS = {
    "axolotl": "axolotl", "chujiezheng": "chujiezheng/chat_templates", "llamacpp": "llama.cpp",
    "mistral_common": "mistral-common", "trl": "TRL",
}  # fmt: skip
COLUMNS = {
    "one turn": "one", "many turns": "many", "system": "system", "replies in a row": "in a row",
    "opens with a reply": "opens", "white space": "space", "Unicode": "Unicode", "code and markup": "code",
    "typed parts": "parts", "weights": "weights", "control tokens": "forged", "reasoning": "thought",
    "inline <think>": "inline", "tools": "tools", "parallel calls": "parallel",
}  # fmt: skip
_MEANING = {
    "the template has no place for tools": "the prompt would not show the tools that the reply calls; describe "
    "them in a system message, or train another template",
    "the template drops the reply's reasoning": "the model is not made to think, or its template hides it; remove "
    "the reasoning, or `unfaithful: keep` to train what is rendered",
    "the prompt opens a thought and the row has no reasoning": "the model always thinks first and has no switch "
    "against it: rows without reasoning do not fit it",
    "the prompt closes the thought and the row has reasoning": "the switch against thinking is set",
    "the prompt is not the beginning of the conversation": "the rendering with the reply shows another history "
    "than the prompt did (a system message that moves, a thought that goes)",
    "the template changes the reply's text": "what would be trained is not what the row says",
    "the template drops the reply's tool calls": "nothing of a call, or only the first of several, would be trained",
    "the template fails: TypeError: 'NoneType' object is not iterable": "these files are the tool-use half of a "
    "tokenizer's pair, and cannot render a row without tools",
    "control tokens in its text": "the row itself holds tokens that end a message: `control_tokens: escape | keep`",
    "a stop token stands inside the reply": "the model would be taught to stop, and to go on",
}


@dataclass
class Figures:
    """The figures of a run of the harness; `plain` and `tools` are shares of the templates."""

    outcomes: Sequence[Outcome]
    refuse_plain: list[str] = field(default_factory=list)
    refuse_tools: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        sources = {label(path): template_source(path) for path in TEMPLATES}
        self.by_cell = {(o.template, o.conversation): o for o in self.outcomes if o.tokenizer == SHOWN}
        self.templates = [label(path) for path in TEMPLATES]
        self.knowing = [name for name in self.templates if _KNOWS_TOOLS.search(sources[name])]
        self.refuse_plain = [n for n in self.templates if not all(self.by_cell[n, c].accepted for c in PLAIN)]
        self.refuse_tools = [n for n in self.knowing if not any(self.by_cell[n, c].accepted for c in CALLS)]

    @property
    def plain(self) -> float:
        return 1 - len(self.refuse_plain) / len(self.templates)

    @property
    def tools(self) -> float:
        return 1 - len(self.refuse_tools) / len(self.knowing)


def every_cell() -> Iterator[Outcome]:
    """The outcomes of all cells: some minutes. The clock of templates stands still meanwhile."""
    alike = sorted(TEMPLATES, key=lambda path: controls_of(template_source(path)))
    with fixed_clock():
        for kind in KINDS:
            yield from run(alike, [kind])


def templates_page(outcomes: Sequence[Outcome]) -> str:
    """docs/templates.md, from the outcomes of all cells."""
    figures = Figures(outcomes)
    parts = [_head(figures), _accepted(figures), _switches(figures), _reasons(figures), _tokenizers(outcomes)]
    return "\n\n".join(parts) + "\n"


def _head(figures: Figures) -> str:
    outcomes, names = figures.outcomes, figures.templates
    turns, unsound = sum(len(o.cases) for o in outcomes), sum(len(o.violations) for o in outcomes)
    corpus = conversations()
    plain, tools = len(names) - len(figures.refuse_plain), len(figures.knowing) - len(figures.refuse_tools)
    table = markdown.table(
        ("figure", "value"),
        [
            ("templates", f"{len(names)}"),
            ("tokenizers", f"{len({o.tokenizer for o in outcomes})}"),
            ("conversations", f"{sum(map(len, corpus.values()))} of {len(corpus)} kinds"),
            ("cells: template × tokenizer × conversation", f"{len(outcomes):,}"),
            ("turns accepted and held against the oracle", f"{turns:,}"),
            ("**of these unsound**", f"**{unsound}**"),
            ("templates that accept plain chat, one and many turns", f"{plain} of {len(names)} ({figures.plain:.0%})"),
            (
                "templates that know tools and accept calls and the replies to their results",
                f"{tools} of {len(figures.knowing)} ({figures.tools:.0%})",
            ),
        ],
    )  # fmt: skip
    return f"""\
# Chat templates: what is accepted, and what is left out

Every reply is trained in the context in which a server would ask for it, on the tokens that the model
must then produce, or it is left out with a reason. This page is the proof over real templates: made by
`tools/write_docs.py` from a run of the harness (`tests/render/cells.py`), and kept true by a test.

A turn is *sound* if transformers alone confirms it: its prompt is what `apply_chat_template` gives a
server and holds what was said, offered and found; prompt and completion are the beginning of the
template's own rendering; the last token is a stop, and no stop stands before it; the reply, its thought
and its calls are trained at their weight, and no word of a user, a system message, a tool or a result is;
no BOS and no HTML escape stands where the row and the rendering have none. The oracle
(`tests/render/oracle.py`) is itself tested with planted faults.

{table}"""


def _accepted(figures: Figures) -> str:
    out = """\
## What each template accepts

`●` all replies of all conversations of the kind; `○` too, some where the prompt opens the thought, or the
rendering with the reply rewrites the history; `n/m` so many of the conversations in full; `·` none. Left out of
the count is what the row itself asks for: weight 0, an opening reply, forged control tokens. The kinds: one turn;
many turns; with a system message; two replies in a row; a conversation that opens with a reply; white space,
newlines, replies of one character; Unicode; code and markup; content as typed parts; weights; control tokens
typed by a user; reasoning beside the reply; reasoning in `<think>` tags; tool calls; several calls at once."""
    for folder, origin in _ORIGINS.items():
        names = [name for name in figures.templates if name.startswith(f"{folder}/")]
        rows = [(name.partition("/")[2], *(_mark(figures, name, kind) for kind in COLUMNS)) for name in names]
        out += f"\n\n### {origin}\n\n" + markdown.table(("template", *COLUMNS.values()), rows)
    return out


def _mark(figures: Figures, name: str, kind: str) -> str:
    cells = [figures.by_cell[name, one] for one in conversations()[kind]]
    whole = sum(cell.accepted for cell in cells)
    if 0 < whole < len(cells):
        return f"{whole}/{len(cells)}"
    special = any(case != "prefix" for cell in cells for case in cell.cases)
    return "·" if not whole else "○" if special else "●"


def _switches(figures: Figures) -> str:
    rows = []
    for name in figures.templates:
        plain, thought = (figures.by_cell[name, one].switch for one in ("several", "every reply"))
        if plain or thought:
            rows.append((name, markdown.code(plain), markdown.code(thought)))
    return f"""\
## Thinking switches

Where a template's default does not fit the data, its own switch is set, for training and as the default of
the saved model. No other template needs one.

{markdown.table(("template", "data without reasoning", "data with reasoning"), rows)}"""


def _reasons(figures: Figures) -> str:
    """Every refused cell: by reason, then by the same conversations."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (name, conversation), cell in figures.by_cell.items():
        for reason in cell.refusals:
            found[reason][name].add(conversation)
    out = "## Why something is left out\n\nEach reason, with the conversations and the "
    out += "templates in which it occurs; a kind in bold is all of its conversations (`tests/render/dialogues.py`)."
    for reason, names in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        groups: dict[str, list[str]] = defaultdict(list)
        for name in (name for name in figures.templates if name in names):
            groups[_conversations(names[name])].append(name)
        meaning = _MEANING.get(reason)
        count = sum(map(len, names.values()))
        size = f"{markdown.number(len(names), 'template')}, {markdown.number(count, 'cell')}"
        out += f"\n\n### {markdown.plain(reason)}\n\n{size}"
        out += f": {meaning}." if meaning else "."
        for some, those in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
            out += f"\n- {some}: {_by_folder(those)}"
    return out


def _conversations(some: set[str]) -> str:
    """Conversations by name; a whole kind by its own."""
    if len(some) == sum(map(len, conversations().values())):
        return "**all**"
    parts = []
    for kind, rows in conversations().items():
        mine = [name for name in rows if name in some]
        if len(mine) == len(rows):
            parts.append(f"**{markdown.plain(kind)}**")
        elif mine:
            parts.append(f"{markdown.plain(kind)} ({', '.join(mine)})")
    return ", ".join(parts)


def _by_folder(names: Iterable[str]) -> str:
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, stem = name.partition("/")
        folders[folder].append(stem)
    return "; ".join(f"*{folder}* {', '.join(stems)}" for folder, stems in folders.items())


def _tokenizers(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for kind in KINDS:
        mine = [outcome for outcome in outcomes if outcome.tokenizer == kind]
        own = Counter(
            reason for o in mine for reason in o.reasons if reason.startswith(("the tokenizer", "its tokens"))
        )
        rows.append((
            f"`{kind}`", f"{len(mine):,}", f"{sum(len(o.cases) for o in mine):,}",
            f"{sum(len(o.violations) for o in mine)}",
            "; ".join(f"{reason}: {count:,} replies" for reason, count in own.items()) or "–",
        ))  # fmt: skip
    return f"""\
## Tokenizers

Each template was paired with each of these; its control tokens were added to them. `bytes` is made of bytes
alone; gpt2, GPT-NeoX and the tiny ones are byte-level BPE; Mistral's are SentencePiece with byte fallback and a
dummy prefix. torchtitan's test tokenizer has no token for the space, torchtune's none for most of Unicode: what
they cannot write is left out, not trained with holes.

{markdown.table(("tokenizer", "cells", "turns", "unsound", "left out for the tokenizer's sake"), rows)}"""
