"""The page: every token is on it, nothing that a row holds becomes markup, and its script does what it says."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from imprint.data.conversation import Message
from imprint.render.account import KINDS, Account, owned
from imprint.render.page import as_script_data, side_of, write
from imprint.render.resolve import prepare_rendering
from imprint.render.turns import ReplyText, Turn, render, reply_texts
from render.corpus import CONVERSATIONS, NOW, made_for, make_tokenizer, reply, talk, user

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = [
    "</script><script>document.title='hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\"> <!-- <b>&amp;&lt; ]]> {{ 7*7 }} {% raw %} ${x}`",
    "'\"><svg onload=document.title='hacked'>",
    "\u202eright to left\u202c שלום \u0000\u001b[31m\u2028\u2029\ufeff\u200b \r\n\t end",
    "😀 e\u0301 漢字 \ufffd",
]


def sides_of(conversation, made) -> list[tuple[Turn, dict]]:
    turns = [
        t
        for t in render([conversation], made.template, made.encoder, max_length=10**6)
        if isinstance(t, Turn)
    ]
    texts = {
        t.turn: t.prompt + t.completion
        for t in reply_texts(conversation, 0, made.template, made.encoder)
        if isinstance(t, ReplyText)
    }
    known = owned(turns, [texts[turn.turn] for turn in turns], conversation, made.encoder)
    return [
        (turn, side_of(turn, one, made.encoder, made.stop_ids))
        for turn, one in zip(turns, known, strict=True)
    ]


def facts_of(**more) -> dict:
    sums = dict(turns=1, trained=2, stops=1, others=0, unknown=0, conversations=1, context=3, longest=5)
    return {
        "title": "base", "files": ["rows.jsonl"], "row": "", "held_out": False, "template": "t", "other": "",
        "stops": [("<|im_end|>", 3)], "other_stops": [], "notes": [], "account": Account(()), "sums": sums,
        "how": "", "reply": "", "cases": [], "levels": [], "warnings": [], "num_shown": 1, "num_turns": 1,
        "num_out": 0, "all_out": 0,
    } | more  # fmt: skip


def page_of(conversations, made, out=(), **more) -> str:
    turns = [
        {"place": f"rows.jsonl:{i + 1}", "source": 0, "number": 0, "case": "prefix", "sides": [side]}
        for i, conversation in enumerate(conversations)
        for _, side in sides_of(conversation, made)
    ]
    data = {"names": ["t"], "turns": turns, "out": list(out), "sources": ["rows.jsonl"]}
    return write(facts_of(**more), data)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of the scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def made():
    return made_for("", template="chatml")


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", ["bytes", "gpt_neox_20b", "mistral_v1_spm"])
def test_every_token_is_on_the_page(kind, name):
    made = prepare_rendering(make_tokenizer(kind, eos_token="</s>"), template="chatml", now=NOW)
    for turn, side in sides_of(CONVERSATIONS[name], made):
        assert side["ids"] == turn.ids.tolist()
        counts = [side["joined"].get(i, 1) for i in range(len(side["pieces"]))]
        assert sum(counts) == len(turn)
        assert "".join(side["pieces"]) == made.encoder.decode(turn.ids)
        assert side["prompt"] == len(turn.prompt)
        assert sum(side["weights"][1::2]) == len(turn.completion)
        assert sum(side["owners"][2::3]) == len(turn)
        assert side["stop"]
        kinds = [
            KINDS[k]
            for k, count in zip(side["owners"][::3], side["owners"][2::3], strict=True)
            for _ in range(count)
        ]
        assert {*kinds[side["prompt"] :]} <= {"the reply", "template"}
        assert "user" in kinds[: side["prompt"]]


def test_a_character_of_several_tokens_is_one_piece(made):
    ((_, side),) = sides_of(talk(user("a👋b"), reply("👋")), made)
    wave = side["pieces"].index("👋")
    assert side["joined"][wave] == 4
    assert side["pieces"][wave - 1 : wave + 2] == ["a", "👋", "b"]


def test_weights_and_changes_come_run_by_run(made):
    from dataclasses import replace

    conversation = CONVERSATIONS["single"]
    turn = next(iter(render([conversation], made.template, made.encoder, max_length=10**6)))
    turn = replace(turn, weight=np.array([0, 0, *[0.5] * (len(turn.weight) - 2)], np.float32))
    text = made.encoder.decode(turn.ids)
    (known,) = owned([turn], [text], conversation, made.encoder)
    start = text.index("zebra")
    side = side_of(turn, known, made.encoder, made.stop_ids, [(start, start + 5), (start + 7, start + 8)])
    assert side["weights"] == [0.0, 2, 0.5, len(turn.weight) - 2]
    pieces = [
        "".join(side["pieces"][a:b]) for a, b in zip(side["changed"][::2], side["changed"][1::2], strict=True)
    ]
    assert pieces == ["zebra", "w"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_row_holds_becomes_markup(text, made):
    conversation = talk(Message("system", text), user(text), reply(text + "!"))
    out = {"what": "record", "place": text, "source": 0, "message": None, "reason": text, "detail": text}
    hostile = dict(title=text, files=[text], notes=[text], template=text, row=text, warnings=[(text, 1, text)],
                   levels=[{"name": text, "total": 1, "kept": [(text, 1)], "left": text, "num_left": 1,
                            "reasons": [(text, 1, text, text)]}])  # fmt: skip
    page = page_of([conversation], made, [out], **hostile)
    plain = page_of([CONVERSATIONS["single"]], made)
    elements = Elements(page)
    assert len(elements.scripts) == 2
    tables = {"b", "table", "caption", "thead", "tbody", "tr", "th", "td", "code", "h3"}
    assert {tag for tag, _ in elements.found} <= {tag for tag, _ in Elements(plain).found} | tables
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    data = json.loads(elements.scripts[0])
    assert data["out"][0]["reason"] == text
    assert "".join(data["turns"][0]["sides"][0]["pieces"]).count(text) == 3
    assert elements.scripts[1] == Elements(plain).scripts[1], "the script depends on the rows"


def test_the_data_is_ascii_without_anything_that_html_reads():
    text = as_script_data({"</script>&": "\u2028\ud800<!--\x00é"})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script>&": "\u2028\ud800<!--\x00é"}


def test_the_policy_allows_its_own_script_alone(made):
    page = page_of([CONVERSATIONS["single"]], made)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://|@import|url\(|\bsrc=|<link", page)
    assert "innerHTML" not in page
    assert "eval(" not in page


def test_what_is_wrong_is_said_on_top(made):
    sums = facts_of()["sums"]
    right = page_of([CONVERSATIONS["single"]], made)
    wrong = page_of([CONVERSATIONS["single"]], made, sums=sums | {"others": 7})
    assert "No token of a user, a system message or a tool is among them." in right
    assert "7 of them hold text of a user" in wrong
    assert "No token of a user" not in wrong
    unsure = page_of([CONVERSATIONS["single"]], made, sums=sums | {"unknown": 1})
    assert "but not all of their texts could be found" in unsure
    assert "is among them" not in unsure


# ---- in a browser

CHECKS = r"""
const seen = {};
const $ = id => document.getElementById(id);
const press = (key, target, more) => (target || document.body).dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const search = (kind, text) => {
  $("kind").value = kind; $("query").value = text; $("query").dispatchEvent(new Event("change"));
  return $("told").textContent;
};
const hits = () => [...document.querySelectorAll(".hit")].map(span => span.textContent).join("");
const bodyOf = i => document.querySelector("#turn-" + i + " .body");
seen.title = document.title;
seen.scripts = document.scripts.length;
seen.images = document.querySelectorAll("img, svg").length;
seen.turns = document.querySelectorAll(".turn").length;
seen.first = bodyOf(0).textContent;
seen.trained = [...bodyOf(0).querySelectorAll(".trained")].map(span => span.textContent).join("");
seen.stop = [...bodyOf(0).querySelectorAll(".stop")].map(span => span.textContent).join("");
seen.hostile = bodyOf(1).textContent;
seen.drawn = document.querySelectorAll("[data-drawn]").length;
bodyOf(0).querySelector(".stop").dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
seen.token = $("token").textContent;
press("Escape");
seen.left = $("token").hidden;
seen.text = search("text", "ZEBRA");
press("n");
seen.next = $("told").textContent;
seen.hit = hits();
press("p"); press("p");
seen.previous = $("told").textContent;
seen.byId = search("id", ID);
seen.byRole = search("role", "user");
seen.roleHit = document.querySelectorAll("#turn-0 .hit").length > 0 && hits();
seen.bySource = search("source", "rows.jsonl:2");
seen.none = search("text", "nowhere to be found");
search("text", "");
for (let i = 0; i < 9; i++) press("k");
seen.top = document.activeElement.id;
press("j", document.activeElement); seen.j = document.activeElement.id;
press("k", document.activeElement); seen.k = document.activeElement.id;
press("Enter", document.activeElement);
seen.enter = document.activeElement.textContent;
press("ArrowRight", document.activeElement); seen.right = document.activeElement.textContent;
press("ArrowLeft", document.activeElement); press("ArrowLeft", document.activeElement);
seen.leftOf = document.activeElement.textContent;
press("End", document.activeElement); seen.end = document.activeElement.textContent;
seen.focused = $("token").textContent;
press("/", document.body); seen.slash = document.activeElement.id;
$("query").blur(); press("?"); seen.help = $("keys").open; $("keys").close();
$("what").value = "why:the reason <b>"; $("what").dispatchEvent(new Event("change"));
seen.why = [...document.querySelectorAll(".out")].map(out => out.textContent);
seen.hidden = [...document.querySelectorAll(".turn")].every(turn => turn.hidden);
$("what").value = "turns"; $("what").dispatchEvent(new Event("change"));
seen.outs = $("outs").hidden;
dispatchEvent(new Event("beforeprint"));
seen.printed = document.querySelectorAll("[data-drawn]").length;
const told = document.createElement("pre");
told.id = "seen";
told.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(seen))));
document.body.replaceChildren(told);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_in_a_browser(made, tmp_path):
    long = talk(user("zebra " * 300), reply("far"))
    hostile = talk(user("".join(HOSTILE)), reply("".join(HOSTILE) + "!"))
    refused = {"what": "record", "place": "rows.jsonl:9", "source": 0, "message": None}
    out = [
        {**refused, "reason": "the reason <b>", "detail": "<i>"},
        {**refused, "what": "reply", "message": 1, "reason": "other", "detail": ""},
    ]
    talks = [CONVERSATIONS["single"], hostile, long, long, long, long]
    stop = made.stop_ids[0]
    page = page_of(talks, made, out)
    checks = CHECKS.replace("ID)", f'"{stop}")')
    digest = base64.b64encode(hashlib.sha256(checks.encode()).digest()).decode()
    page = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    page = page.replace("</body>", f"<script>{checks}</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    dumped = re.search(r'<pre id="seen">([^<]+)</pre>', done.stdout)
    assert dumped, f"the script failed: {done.stdout[-500:]} {done.stderr[-2000:]}"
    seen = json.loads(base64.b64decode(dumped[1]))
    assert seen["title"] == "What base will be trained on · imprint"
    assert (seen["scripts"], seen["images"], seen["turns"]) == (3, 0, 6)
    assert seen["first"].startswith("<|im_start|>user↵\nzebra: what is 2 + 2?<|im_end|>↵\n")
    assert (seen["trained"], seen["stop"]) == ("It is 4.<|im_end|>", "<|im_end|>")
    assert HOSTILE[0] in seen["hostile"]
    assert "\\u{202e}right to left\\u{202c}" in seen["hostile"]
    assert "\\u{0}\\u{1b}[31m\\u{2028}" in seen["hostile"]
    assert seen["drawn"] < 6, "all turns are drawn at once"
    assert f"id{stop}" in seen["token"]
    assert all(
        part in seen["token"] for part in ("trained, the stop", "roletemplate", "weight1", '"<|im_end|>"')
    )
    assert seen["left"]
    assert seen["text"] == "1,201 matches in 5 turns"
    assert seen["next"] == "1 of 1,201 matches in 5 turns"
    assert seen["previous"] == "1,200 of 1,201 matches in 5 turns"
    assert "zebra" in seen["hit"]
    assert seen["byId"].endswith("in 6 turns")
    assert seen["byRole"].endswith("in 6 turns")
    assert "zebra: what is 2 + 2?" in seen["roleHit"]
    assert seen["bySource"] == "1 match in 1 turn"
    assert seen["none"] == "no match"
    assert (seen["top"], seen["j"], seen["k"]) == ("turn-0", "turn-1", "turn-0")
    assert (seen["enter"], seen["right"], seen["leftOf"]) == ("I", "t", "↵\n")
    assert seen["end"] == "<|im_end|>"
    assert "trained, the stop" in seen["focused"]
    assert (seen["slash"], seen["help"]) == ("query", True)
    assert seen["why"] == ["rows.jsonl:9record: the reason <b><i>"]
    assert seen["hidden"]
    assert seen["outs"]
    assert seen["printed"] == 6
