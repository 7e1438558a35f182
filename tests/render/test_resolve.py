"""Tokenizer and template made ready: what is added, what stops a reply, which switch is set."""

import datetime
import json

import pytest

from imprint.errors import ModelError, TemplateError
from imprint.render.probe import choose_switch
from imprint.render.resolve import config_stops, load_tokenizer, prepare_rendering
from imprint.render.template import Template
from imprint.render.tokens import Encoder
from render.corpus import NOW, make_tokenizer, named, tokenizer_json

EOS = "<|endoftext|>"


def prepared(tokenizer, **options):
    return prepare_rendering(tokenizer, now=NOW, **options)


def template(source: str, **options) -> Template:
    return Template(source, "test", {}, NOW, options)


# ----------------------------------------------------------------------------- special tokens and stops


def test_a_preset_adds_only_what_is_missing():
    tokenizer = make_tokenizer("bytes", eos_token=EOS)
    size = len(tokenizer)
    made = prepared(tokenizer, template="chatml")
    assert made.added == ("<|im_start|>", "<|im_end|>")
    assert len(tokenizer) == size + 2
    assert "added to the tokenizer" in made.notes[0]
    assert prepared(tokenizer, template="chatml").added == ()
    half = make_tokenizer("bytes", "<|im_start|>", eos_token=EOS)
    assert prepared(half, template="chatml").added == ("<|im_end|>",)
    for preset in ("llama2", "alpaca"):
        assert prepared(make_tokenizer("bytes", eos_token=EOS), template=preset).added == ()


def test_the_stop_set_is_the_templates_own_then_eos_then_the_models():
    tokenizer = make_tokenizer("bytes", eos_token=EOS)
    eos = tokenizer.eos_token_id
    made = prepared(tokenizer, template="chatml", config_stops=[eos, 7, 10**6])
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert made.stop_ids == (stop, eos, 7)  # an id that no token has is none
    assert tokenizer.eos_token == "<|im_end|>"  # so that tools that read only the tokenizer stop there too
    for preset in ("llama2", "alpaca"):
        other = make_tokenizer("bytes", eos_token=EOS)
        assert prepared(other, template=preset).stop_ids == (other.eos_token_id,)


def test_a_template_without_a_stop_gets_eos_and_says_so():
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    made = prepared(make_tokenizer("bytes", source, eos_token=EOS))
    assert made.stop_ids == (made.encoder.tokenizer.eos_token_id,)
    assert "is trained as the stop" in made.notes[0]


def test_the_stop_of_tool_calls_is_among_the_stops():
    made = prepared(make_tokenizer("bytes", named("trl/gptoss.jinja"), eos_token="<|return|>"))
    assert made.encoder.tokenizer.convert_ids_to_tokens(list(made.stop_ids)) == ["<|return|>", "<|call|>"]
    mistral = prepared(
        make_tokenizer("bytes", named("mistral_common/v3.jinja"), bos_token="<s>", eos_token="</s>")
    )
    assert mistral.encoder.tokenizer.convert_ids_to_tokens(list(mistral.stop_ids)) == ["</s>"]


def test_config_stops_reads_both_files(tmp_path):
    assert config_stops(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert config_stops(tmp_path) == [5, 2]


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=f"{name} is not a JSON object") as caught:
        config_stops(tmp_path)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.fix


def test_a_broken_config_is_named_where_end_of_text_is_looked_for(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer_json("bytes").to_str())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not a JSON object"):
        load_tokenizer(str(tmp_path))


# ----------------------------------------------------------------------------- options


def test_an_option_that_the_template_does_not_read_names_the_nearest():
    tokenizer = make_tokenizer("bytes", named("llamacpp/Qwen-Qwen3-0.6B.jinja"), eos_token=EOS)
    with pytest.raises(TemplateError, match="enable_thinkin") as failure:
        prepared(tokenizer, options={"enable_thinkin": False})
    assert "write enable_thinking" in str(failure.value)
    for given in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(TemplateError, match="no option"):
            prepared(tokenizer, options={given: 1})


def test_an_option_that_cannot_be_saved_is_an_error():
    tokenizer = make_tokenizer(
        "bytes", named("llamacpp/meta-llama-Llama-3.1-8B-Instruct.jinja"), eos_token=EOS
    )
    with pytest.raises(TemplateError, match="in quotes"):
        prepared(tokenizer, options={"date_string": datetime.date(2025, 1, 1)})
    made = prepared(tokenizer, options={"date_string": "1 Jan 2025"})
    assert "1 Jan 2025" in made.template.render([{"role": "user", "content": "a"}])


# ----------------------------------------------------------------------------- the thinking switch

OPENS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content }}</s>{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[A]"
)
THINKS = "{% if KEY is defined and KEY %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
PLAIN, REASONED = 0.0, 1.0
KEEPS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[A]{% if thinking and m.thinking %}<think>"
    "{{ m.thinking }}</think>{% endif %}{{ m.content }}</s>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[A]{% endif %}"
)


def chosen(source, share=PLAIN, **options):
    encoder = Encoder(make_tokenizer("bytes", eos_token="</s>"))
    return choose_switch(template(source, **options), encoder, share)


@pytest.mark.parametrize("key", ["enable_thinking", "thinking"])
def test_the_switch_is_set_where_the_data_has_no_thoughts(key):
    source = OPENS + "{% if KEY is defined and not KEY %}{% else %}<think>\n{% endif %}{% endif %}"
    source = source.replace("KEY", key)
    found, note = chosen(source)
    assert found.options == {key: False}
    assert f"the data has no reasoning: {key}=false is set" in note
    assert chosen(source, REASONED) == (template(source), "")
    assert chosen(source, PLAIN, **{key: True}) == (template(source, **{key: True}), "")  # the user's own


@pytest.mark.parametrize("source", [OPENS + THINKS.replace("KEY", "thinking"), KEEPS])
def test_the_switch_is_set_where_the_data_has_thoughts(source):
    """DeepSeek-V3.1 closes the thought, and Granite drops it, unless they are told to think."""
    found, note = chosen(source, REASONED)
    assert found.options == {"thinking": True}
    assert "by default the template leaves reasoning out" in note
    assert chosen(source, PLAIN) == (template(source), "")


def test_of_mixed_data_the_larger_part_decides():
    found, note = chosen(KEEPS, 0.7)
    assert found.options == {"thinking": True}
    assert "70% of the conversations have reasoning" in note
    assert "replies of the other kind may be left out" in note
    assert chosen(KEEPS, 0.2)[0].options == {}


def test_no_switch_is_set_where_none_helps():
    for end in ("<think>{% endif %}", "<think>{% if enable_thinking %}x{% endif %}{% endif %}"):
        assert chosen(OPENS + end)[0].options == {}
    raising = (
        OPENS + "<think>{% if enable_thinking is defined %}{{ raise_exception('no') }}{% endif %}{% endif %}"
    )
    assert chosen(raising)[0].options == {}
    closed = OPENS + "<think>\n\n</think>\n\n{{ enable_thinking }}{% endif %}"
    assert chosen(closed)[0].options == {}
    assert chosen("{{ raise_exception('no') }}")[0].options == {}


def test_the_switch_becomes_the_saved_models_default():
    made = prepared(make_tokenizer("bytes", named("axolotl/qwen3.jinja"), eos_token="<|im_end|>"))
    tokenizer = made.encoder.tokenizer
    question = [{"role": "user", "content": "a"}]
    tokenizer.chat_template = made.template.serving_source
    served = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert served == made.template.render(question, (), True)
    assert served.endswith("</think>\n\n")


# ----------------------------------------------------------------------------- loading


def test_a_lone_tokenizer_json_is_enough(tmp_path):
    tokenizer_json("gpt_neox_20b").save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).eos_token == EOS  # a well-known name in its vocabulary
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [1]}))
    assert load_tokenizer(str(tmp_path)).eos_token == "<|padding|>"  # the model's own config knows better
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": []}))
    assert load_tokenizer(str(tmp_path)).eos_token == EOS


def test_a_saved_tokenizer_comes_back_with_its_template_and_stop(tmp_path):
    made = prepared(make_tokenizer("bytes", eos_token=EOS), template="chatml")
    tokenizer = made.encoder.tokenizer
    tokenizer.chat_template = made.template.serving_source
    tokenizer.save_pretrained(tmp_path)
    again = prepared(load_tokenizer(str(tmp_path)))
    assert again.stop_ids[0] == made.stop_ids[0]
    assert again.added == ()
    question = [{"role": "user", "content": "a\n b"}]
    assert again.template.render(question, (), True) == made.template.render(question, (), True)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded") as failure:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(failure.value)


def test_one_of_the_tokenizers_templates_by_its_name():
    """The one that is named renders everything, conversations with tools too, and is saved."""
    source = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tokenizer = make_tokenizer("bytes", eos_token=EOS)
    tokenizer.chat_template = {"rag": "RAG " + source, "tool_use": "TOOL " + source}
    made = prepared(tokenizer, template="rag")
    assert made.template.name == "the tokenizer's template `rag`"
    assert made.template.tool_use is None
    assert made.template.serving == "RAG " + source
    with pytest.raises(TemplateError, match="no default") as failure:
        prepared(tokenizer)
    assert "rag, tool_use" in str(failure.value)
