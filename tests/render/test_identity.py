"""What makes a tokenizer another one, and what of a date a template can show."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from imprint.render.identity import shown_dates, template_texts, tokenizer_digest
from render.corpus import TEMPLATES, needs_templates, template_source

NOW = datetime(2025, 7, 26, 3, 4, 5)


def tokenizer(words="a b", **named):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words.split())}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def test_equal_tokenizers_have_one_digest():
    assert tokenizer_digest(tokenizer()) == tokenizer_digest(tokenizer())


def test_whatever_changes_ids_changes_the_digest():
    split = tokenizer()
    split.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    added = [tokenizer() for _ in range(3)]
    added[0].add_tokens(["c"])
    added[1].add_tokens([AddedToken("c", lstrip=True)])
    added[2].add_special_tokens({"additional_special_tokens": ["c"]})
    different = [
        tokenizer(),
        tokenizer("b a"),
        tokenizer("a b c"),
        tokenizer(eos_token="b"),
        tokenizer(bos_token="b"),
        split,
        *added,
    ]
    assert len({tokenizer_digest(one) for one in different}) == len(different)


def test_a_tokenizer_without_backend_is_what_it_saves(tmp_path):
    class Own:
        special_tokens_map = {"eos_token": "x"}
        added_tokens_decoder = {}

        def __init__(self, text):
            self.text = text

        def save_pretrained(self, folder):
            (tmp_path.__class__(folder) / "vocabulary.txt").write_text(self.text)

    assert tokenizer_digest(Own("a")) == tokenizer_digest(Own("a")) != tokenizer_digest(Own("b"))


def test_the_texts_that_a_template_may_mean(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("mine")
    assert template_texts("auto", "theirs") == ["theirs", "theirs"]
    assert template_texts(str(path), "theirs") == ["theirs", "mine"]
    assert template_texts(str(path), None) == ["mine"]
    two = {"default": "theirs", "tool_use": "with tools"}
    assert len({*template_texts("auto", two)}) == 3
    assert template_texts("auto", two) != template_texts("auto", {**two, "tool_use": "else"})
    assert template_texts("chatml", None) != template_texts("alpaca", None)
    assert template_texts("auto", None) == template_texts("no such", None) == []


DAY = "{{ strftime_now('%d %b %Y') }}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no date at all", []),
        (DAY, ["%d %b %Y=26 Jul 2025"]),
        (DAY + DAY, ["%d %b %Y=26 Jul 2025"]),
        (DAY + '{{ strftime_now("%H") }}', ["%H=03", "%d %b %Y=26 Jul 2025"]),
        ("{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% endif %}", ["%Y=2025"]),
        ("{% if strftime_now is not defined %}{% endif %}", []),
        ("{# strftime_now('%Y') #}", []),
        ("{{ messages[0].strftime_now }}", []),
        # forms that are not written in the template: all of the date counts
        ("{{ strftime_now(date_format) }}", [NOW.isoformat()]),
        ("{{ strftime_now('%d' ~ '%H') }}", [NOW.isoformat()]),
        ("{% set clock = strftime_now %}{{ clock('%H') }}", [NOW.isoformat()]),
        ("{{ strftime_now(*['%H']) }}", [NOW.isoformat()]),
        ("{{ strftime_now(form='%H') }}", [NOW.isoformat()]),
        ("{{ [['%H']] | map(strftime_now) }}", [NOW.isoformat()]),
        (DAY + "{{ strftime_now(x) }}", [NOW.isoformat()]),
        ("{{ strftime_now( }}", [NOW.isoformat()]),
    ],
)
def test_what_is_shown_of_a_date(text, shown):
    assert shown_dates([text], NOW) == shown


def test_a_date_that_is_not_shown_makes_no_difference():
    hour = timedelta(hours=1)
    assert shown_dates([DAY], NOW) == shown_dates([DAY], NOW + hour) != shown_dates([DAY], NOW + 24 * hour)
    computed = "{{ strftime_now(x) }}"
    assert shown_dates([computed], NOW) != shown_dates([computed], NOW + hour)
    assert len(shown_dates([DAY, "{{ strftime_now('%H') }}"], NOW)) == 2


@needs_templates
def test_dates_of_real_templates():
    """Equal dates by this account, equal renderings: the templates are rendered on two days, at two times."""
    from imprint.render.template import Refused, Template

    changed, dated = [], [path for path in TEMPLATES if "strftime_now" in template_source(path)]
    for path in dated:
        source = template_source(path)
        texts = {}
        for now in (NOW, NOW + timedelta(hours=5), NOW + timedelta(days=40)):
            template = Template(source, path.name, {"bos_token": "", "eos_token": ""}, now)
            try:
                text = template.render([{"role": "user", "content": "q"}], (), True)
            except Refused:
                continue
            texts.setdefault(json.dumps(shown_dates([source], now)), set()).add(text)
        assert all(len(same) == 1 for same in texts.values()), path
        changed.append(len(texts))
    assert len(dated) > 5
    assert max(changed) == 2, "forms are found: hours make no difference, days do"
