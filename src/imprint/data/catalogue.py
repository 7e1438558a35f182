"""Every format that imprint reads: name, columns, reader, an example, and what becomes of a row.

docs/formats.md is this table; `imprint.data.recognise` chooses among its lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from imprint.data import shapes, shapes_api, shapes_chosen, shapes_text, shapes_tools, shapes_tree
from imprint.data.shapes import Read, Row

CHAT, PAIR, ALONE = 0, 1, 2  # a list of messages goes before a pair of texts, and that before a text alone


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """One way to write a demonstration: its name in recipes, the columns a row must have, its reader.

    `fits` looks at the values, where columns alone do not tell; `uses` are columns that are read where
    they are there; `becomes` says in a sentence what is trained.
    """

    name: str
    columns: tuple[str, ...]
    read: Read
    becomes: str
    example: Any = field(repr=False)
    rank: int = PAIR
    fits: Callable[[Row], bool] | None = None
    uses: tuple[str, ...] = ()

    @property
    def chat(self) -> bool:
        """Whether a row may also be the bare list of its messages."""
        return self.rank == CHAT and len(self.columns) == 1


_TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
_SHAREGPT = [{"from": "human", "value": "What is the capital of France?"}, {"from": "gpt", "value": "Paris."}]
_ASK, _SAY = "What is the capital of France?", "Paris."
_TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def _chat(column: str, becomes: str, example: Any, *, named: str = "", sure: bool = False) -> Format:
    fits = None if sure else shapes.is_chat(column)
    return Format(named or column, (column,), shapes.chat(column), becomes, {column: example}, CHAT, fits)


def _pair(prompt: str, reply: str) -> Format:
    becomes = f"{prompt} is the prompt, {reply} the reply; each a text or a list of messages"
    example = {prompt: _ASK, reply: _SAY}
    read = shapes.pair(prompt, reply)
    return Format(f"{prompt}_{reply}", (prompt, reply), read, becomes, example, uses=("history",))


_PREFERENCE = {"prompt": _ASK, "chosen": _SAY, "rejected": "Lyon."}
_API = '{"paths": {"/dogs": {"get": {"operationId": "dog", "parameters": []}}}}'
_TREE = {
    "message_tree_id": "t",
    "prompt": {
        "message_id": "t",
        "role": "prompter",
        "text": "Hi",
        "replies": [{"message_id": "a", "role": "assistant", "text": "Hello!", "rank": 0, "replies": []}],
    },
}

FORMATS = (
    # lists of messages
    _chat("messages", "its messages, as OpenAI or Anthropic write them: texts, typed parts, tool calls", _TALK,
          sure=True),
    _chat("conversations", "its messages, {from, value} or {role, content}, or texts in turn", _SHAREGPT,
          named="sharegpt", sure=True),
    _chat("conversation", "as sharegpt, or a list of {input, output}, the first perhaps with a system text (XTuner)",
          [{"input": _ASK, "output": _SAY}]),
    _chat("dialog", "as sharegpt", _TALK),
    _chat("dialogue", "as sharegpt", _TALK),
    _chat("chat", "as sharegpt", _TALK),
    _chat("items", "its messages, as sharegpt has them; texts in turn are none", _SHAREGPT),
    _chat("data", "texts in turn, the user's first (UltraChat)", [_ASK, _SAY]),
    Format("oasst", ("message_tree_id", "prompt"), shapes_tree.trees,
           "a tree: each reply that was not deleted, once, in its own context", _TREE, CHAT, shapes_tree.is_tree),
    # an instruction and its reply
    Format("alpaca", ("instruction", "input", "output"), shapes.alpaca,
           "instruction, blank line, input: the prompt (an empty input is left away); output is the reply",
           {"instruction": "Name the capital.", "input": "France", "output": _SAY}, uses=("history",)),
    Format("instruction_output", ("instruction", "output"), shapes.alpaca,
           "instruction is the prompt, output the reply", {"instruction": _ASK, "output": _SAY}, uses=("history",)),
    Format("dolly", ("instruction", "response"), shapes.dolly,
           "instruction, blank line, context: the prompt (an empty or missing context is left away)",
           {"instruction": "Who wrote it?", "context": "Emma is by Jane Austen.", "response": "Jane Austen."},
           uses=("context", "history")),
    *(Format(f"instruction_input_{reply}", ("instruction", "input", reply), shapes.instruction(reply),
             f"as alpaca, with {reply} as the reply",
             {"instruction": "Name the capital.", "input": "France", reply: _SAY},
             fits=shapes.without_output, uses=("history",))
      for reply in ("response", "answer", "completion", "target")),
    *(Format(f"instruction_{reply}", ("instruction", reply), shapes.instruction(reply),
             f"instruction is the prompt, {reply} the reply", {"instruction": _ASK, reply: _SAY},
             fits=shapes.without_output, uses=("history",))
      for reply in ("answer", "completion", "target")),
    Format("self_instruct", ("instruction", "instances"), shapes.seeds,
           "each instance is a conversation: instruction, blank line, its input; they stay on one side of the split",
           {"instruction": "Name the capital.", "instances": [{"input": "France", "output": _SAY}]}),
    Format("flan_cot", ("question", "answer", "rationale"), shapes.flan_cot,
           "rationale, then “The answer is ANSWER.”; also a .tsv file of three columns without a header",
           {"question": "Is ice cold?\\n- yes\\n- no", "answer": "yes", "rationale": "Ice is frozen water."}),
    *(_pair(*columns) for columns in (
        ("prompt", "response"), ("prompt", "completion"), ("prompt", "output"), ("prompt", "answer"),
        ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"),
        ("input", "output"), ("input", "response"), ("input", "target"), ("inputs", "targets"),
        ("problem", "solution"), ("problem", "answer"), ("user", "assistant"), ("human", "assistant"),
    )),
    Format("p3", ("inputs_pretokenized", "targets_pretokenized"),
           shapes.pair("inputs_pretokenized", "targets_pretokenized"),
           "the texts, as P3 and T0 hold them beside their ids",
           {"inputs_pretokenized": _ASK, "targets_pretokenized": _SAY}),
    # of a preference, the chosen side
    *(Format(name, (column, "chosen"), shapes_chosen.answered(column),
             f"{column} is the prompt, chosen the reply, as one message", {column: talk[:1], "chosen": talk[1]},
             CHAT, shapes_chosen.is_answered, uses=("rejected",))
      for name, column, talk in (
          ("messages_chosen", "messages", _TALK), ("sharegpt_chosen", "conversations", _SHAREGPT))),
    Format("preferred_output", ("input", "preferred_output"), shapes_chosen.preferred,
           "the messages of input are the prompt, preferred_output the reply (OpenAI)",
           {"input": {"messages": _TALK[:1]}, "preferred_output": _TALK[1:], "non_preferred_output": _TALK[1:]},
           fits=shapes_chosen.is_preferred, uses=("non_preferred_output",)),
    Format("chosen", ("chosen",), shapes_chosen.chosen,
           "chosen is trained, rejected is not: a list of messages, a text with Human: and Assistant:, or the reply"
           " to a prompt; the prompt may be an instruction and its input", _PREFERENCE,
           uses=("rejected", *shapes.PROMPTS, "history")),
    # calls of tools
    Format("bfcl", ("question", "function"), shapes_tools.bfcl,
           "the calls of the ground truth, which may lie in NAME_answers or possible_answer/NAME beside NAME: of each"
           " argument the first accepted value",
           {"id": "simple_0", "question": [[{"role": "user", "content": "Add 1."}]], "function": [_TOOL],
            "ground_truth": [{"add": {"a": [1]}}]}, fits=shapes_tools.is_bfcl, uses=("ground_truth",)),
    Format("xlam", ("query", "answers", "tools"), shapes_tools.xlam,
           "query is the prompt, the calls in answers the reply",
           {"query": "Add 1.", "tools": [_TOOL], "answers": [{"name": "add", "arguments": {"a": 1}}]}),
    Format("toolalpaca", ("Instructions", "Golden_Answers", "Documentation"), shapes_api.toolalpaca,
           "each instruction that one exact call answers; schemas from the OpenAPI document",
           {"Instructions": ["A dog, please."], "Golden_Answers": [[{"Action": "dog", "Action_Input": "{}"}]],
            "Documentation": _API}),
    Format("tau_bench", ("messages_display",), shapes_tools.tau_bench,
           "the chat up to its first tool call, because the text does not show the calls",
           {"messages_display": "user: Hi\nassistant: Hello!\nuser: Cancel it.\nassistant: None\ntool: done"}),
    # ids and documents
    *(Format(f"tokens_{column}", ("input_ids", column), shapes_text.tokens(column),
             "the ids as they are" + (", -100 for context" if column == "labels" else ", 0 for context"),
             {"input_ids": [5, 6, 7], column: [-100, 6, 7] if column == "labels" else [0, 1, 1]})
      for column in ("labels", "assistant_masks", "completion_mask", "loss_mask")),
    Format("oasst_messages", ("message_id", "text", "role"), shapes_tree.alone,
           "one message a row, gathered into trees by parent_id, then as oasst",
           {"message_id": "t", "parent_id": None, "message_tree_id": "t", "role": "prompter", "text": "Hi"},
           fits=shapes_tree.is_tree_message, uses=shapes_tree.TREE_KEYS),
    Format("text", ("text",), shapes_text.document,
           "a document, all of it trained, without a template; a .txt file is one document."
           " (Guanaco's “### Human: … ### Assistant: …” is read as the conversation that it is.)",
           {"text": "It was a dark and stormy night."}, ALONE, shapes_text.is_document),
)  # fmt: skip
BY_NAME = {format.name: format for format in FORMATS}
OPTIONAL = (
    "system",
    "system_prompt",
    "tools",
    "functions",
    "weight",
    "id",
    "split_group",
)  # of rows of any format
COLUMNS = tuple(dict.fromkeys(column for format in FORMATS for column in format.columns))
PARTS = tuple(dict.fromkeys([*COLUMNS, *OPTIONAL, *(column for format in FORMATS for column in format.uses)]))
