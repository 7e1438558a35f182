"""Runs whose golden files are replayed: the embedded base model, trained a little on rows of every kind."""

import json

import pytest

# a template with system messages, tools, calls and a BOS, for the embedded base model
TEMPLATE = """{{ bos_token }}{% if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool.function.name }}: {{ tool.function.description }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{% for call in m.tool_calls %}call {{ call.function.name }} {{ call.function.arguments | tojson }}\
{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "spell",
            "description": "Spells a word.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}},
                "required": ["word"],
            },
        },
    }
]


def golden_rows(count=48):
    """Rows of the demonstrations: plain ones, with a system message, of two questions, with tools and calls."""
    from imprint.demo.base import demonstrations

    lines = demonstrations().read_text(encoding="utf-8").splitlines()[: 2 * count]
    rows = [json.loads(line)["messages"] for line in lines]
    made = []
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        said = [{"role": "system", "content": "Be brief."}] * (number % 3 == 0) + first
        row = {"messages": said + (second if number % 4 == 1 else [])}
        if number % 6 == 5:
            word = first[0]["content"].rstrip("?.").split()[-1]
            call = {
                "type": "function",
                "function": {"name": "spell", "arguments": json.dumps({"word": word})},
            }
            asked = [first[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
            row = {
                "messages": [*asked, {"role": "tool", "content": "-".join(word)}, first[1]],
                "tools": TOOLS,
            }
        made.append(row)
    return made


def arguments(folder, *given):
    """The arguments of a short run in the folder that `trained` makes."""
    plain = [f"model={folder / 'base'}", f"data={folder / 'rows.jsonl'}", f"template={folder / 'chat.jinja'}"]
    plain += [
        "threads=1",
        "precision=float32",
        "samples=0",
        "golden=4",
        "batch_size=8",
        "max_steps=30",
        "epochs=8",
        "learning_rate=3e-3",
    ]
    plain += ["validation=0.2", "validate_every=30"]
    keys = [argument.partition("=")[0] for argument in given]
    return [*(argument for argument in plain if argument.partition("=")[0] not in keys), *given]


def a_little(folder, *given):
    """A short run, with a golden file of four short replies."""
    from imprint.run import train
    from imprint.settings import resolve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imprint.freeze.REPLY", 24)
        return train(resolve(None, arguments(folder, *given)).recipe).run
