"""OpenAssistant: trees in one row, and trees of which each message is a row."""

import itertools
import json
import random

import pytest

from imprint.data.check import survey
from imprint.data.conversation import Message, Place, Record
from imprint.data.formats import converter
from imprint.data.gather import fingerprint, read
from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.errors import DataError, RecipeError
from imprint.recipe import DataSource


def node(name, *replies, role=None, **rest):
    """`u…` asks, `a…` answers; the text is the name."""
    role = role or ("prompter" if name.startswith("u") else "assistant")
    return {"message_id": name, "text": name, "role": role, "replies": list(replies), **rest}


def tree(root):
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": root}


def convert(row, **source):
    notes = []
    made = converter(DataSource(path="x", **source), warn=lambda note, place: notes.append(note))
    return made(Record(row, Place("x", 1))), notes


def said(conversation):
    """Its texts; those that are context only in brackets."""
    return " ".join(f"({m.content})" if m.weight == 0 else m.content for m in conversation.messages)


TREE = tree(
    node("u1", node("a1", node("u2", node("a3", rank=1), node("a4", rank=0)), node("u3", node("a5")), rank=0),
         node("a2", node("u4"), rank=1))
)  # fmt: skip


def test_each_reply_is_trained_once_in_its_own_context():
    found, notes = convert(TREE)
    assert [said(one) for one in found] == [
        "u1 a1 u2 a3", "u1 (a1) u2 a4", "u1 (a1) u3 a5", "u1 a2"
    ]  # fmt: skip
    assert {one.group for one in found} == {"tree t"}
    assert [one.id for one in found] == ["a3", "a4", "a5", "a2"]
    assert notes == []


def test_the_best_branches_alone():
    assert [said(one) for one in convert(TREE, branches="best")[0]] == ["u1 a1 u2 a4", "u1 (a1) u3 a5"]
    unranked = tree(node("u1", node("a1"), node("a2", rank=3), node("a3", rank=None)))
    assert [said(one) for one in convert(unranked, branches="best")[0]] == ["u1 a2"]


def test_the_best_of_replies_without_a_rank_is_the_first_and_that_is_said():
    unranked = tree(node("u1", node("a1", node("u2", node("a3"), node("a4"))), node("a2")))
    found, notes = convert(unranked, branches="best")
    assert [said(one) for one in found] == ["u1 a1 u2 a3"]
    assert notes == ["of several replies without a rank, branches=best takes the first"]
    below = tree(node("u1", node("a1", node("u2", node("a3"), node("a4")), rank=1), node("a2", rank=0)))
    for row, best in ((unranked, "all"), (TREE, "best"), (below, "best")):  # that of `below` is not followed
        assert convert(row, branches=best)[1] == []


def test_the_best_branches_of_what_has_none_are_refused(write, tmp_path):
    pairs = [{"prompt": "q", "response": "a"}, {"prompt": "r", "response": "b"}]
    write("rows.jsonl", pairs)
    with pytest.raises(RecipeError, match="branches=best has no effect") as caught:
        loaded(tmp_path, branches="best")
    assert (caught.value.found, caught.value.fix) == ("2 rows, of other formats", "remove branches=best")
    for trees in ([TREE], FLAT):
        write("rows.jsonl", [*pairs, *trees])
        assert len(loaded(tmp_path, branches="best")[0]) == 4
    write("rows.jsonl", [{"start" if key == "prompt" else key: value for key, value in TREE.items()}])
    assert len(loaded(tmp_path, branches="best", fields={"prompt": "start"})[0]) == 2


def test_a_removed_message_in_a_row_of_its_own_is_told_at_its_place(write, tmp_path):
    root = node("u1", node("a1"), node("a2", deleted=True), node("a3", review_result=False))
    write(
        "rows.jsonl", [*flat(node("u8", node("a8")), message_tree_id="s"), *flat(root, message_tree_id="t")]
    )
    _, ledger = loaded(tmp_path)
    (tally,) = ledger.warnings.values()
    assert [place.line for place in tally.places] == [5, 6]


def test_messages_that_were_removed_take_what_answers_them_along():
    gone = tree(
        node("u1", node("a1", node("u2", node("a2")), deleted=True), node("a3", review_result=False),
             node("a4", review_result=None, deleted=False))
    )  # fmt: skip
    found, notes = convert(gone)
    assert [said(one) for one in found] == ["u1 a4"]
    assert len(notes) == 2
    for empty in (tree(node("u1")), tree(node("u1", node("a1"), deleted=True)), tree(node("u1", node("u2")))):
        with pytest.raises(DataError, match="the tree holds no reply"):
            convert(empty)


def test_equal_replies_are_one():
    twins = tree(
        node("u1", node("a1", node("u2", node("a2"))), {**node("a9", node("u3", node("a3"))), "text": "a1"})
    )
    assert [said(one) for one in convert(twins)[0]] == ["u1 a1 u2 a2", "u1 (a1) u3 a3"]


def test_a_deep_tree_needs_no_recursion():
    deep = node("a0")
    for number in range(1, 6000):
        deep = node(f"{'u' if number % 2 else 'a'}{number}", deep)
    (found,), _ = convert(tree(deep))
    assert len(found.messages) == 6000


@pytest.mark.parametrize("bad", [3, {"text": "x"}, {"text": 3, "role": "assistant"}, node("a", role="robot"),
                                 {**node("a1"), "replies": "x"}])  # fmt: skip
def test_a_message_that_cannot_be_read(bad):
    with pytest.raises(DataError, match="a message of the tree cannot be read"):
        convert(tree(node("u1", bad)))


def contexts(root):
    """Every distinct (context, reply) of a tree, the obvious way."""
    found = set()

    def walk(node, before):
        before = (*before, node["text"])
        if node["role"] == "assistant":
            found.add(before)
        for reply in node["replies"]:
            walk(reply, before)

    walk(root, ())
    return found


def trained(conversations):
    return [
        tuple(message.content for message in one.messages[: index + 1])
        for one in conversations
        for index, message in enumerate(one.messages)
        if message.role == "assistant" and message.weight != 0
    ]


@pytest.mark.parametrize("seed", range(30))
def test_random_trees_are_covered_exactly(seed):
    draw = random.Random(seed)
    names = itertools.count()

    def grow(role, depth):
        replies = (
            [grow("au"[role == "a"], depth - 1) for _ in range(draw.choice((0, 1, 2, 3)))] if depth else []
        )
        return node(f"{role}{next(names)}", *replies)

    root = node("u", node("a", *(grow("u", 4) for _ in range(2))))
    found = trained(convert(tree(root))[0])
    assert len(found) == len(set(found))
    assert set(found) == contexts(root)


# ---- one message a row


def flat(root, parent=None, **rest):
    """The rows of a tree, parents first."""
    row = {key: value for key, value in root.items() if key != "replies"} | {"parent_id": parent, **rest}
    return [row, *(line for reply in root["replies"] for line in flat(reply, root["message_id"], **rest))]


FLAT = flat(TREE["prompt"], message_tree_id="t")


def loaded(tmp_path, name="rows.jsonl", **source):
    ledger = Ledger()
    found = load(
        [DataSource(path=name, **source)], validation=0.0, bad_rows="leave_out", consecutive_replies="merge", seed=0,
        ledger=ledger, base=tmp_path
    )  # fmt: skip
    ledger.check()
    return list(found.train), ledger


@pytest.mark.parametrize("order", ["whole", "mixed", "reversed"])
def test_messages_become_the_tree_wherever_they_stand(write, tmp_path, order):
    others = flat(node("u8", node("a8")), message_tree_id="s")
    rows = FLAT + others
    if order == "mixed":
        rows = [row for pair in itertools.zip_longest(FLAT, others) for row in pair if row]
    write("rows.jsonl", rows[::-1] if order == "reversed" else rows)
    write("whole.jsonl", [TREE, {**tree(node("u8", node("a8"))), "message_tree_id": "s"}])
    found, ledger = loaded(tmp_path)
    assert sorted(trained(found)) == sorted(trained(loaded(tmp_path, "whole.jsonl")[0]))
    assert (ledger.records.total, ledger.records.kept["used"], ledger.records.num_left) == (
        len(rows),
        len(rows),
        0,
    )
    assert {one.group for one in found} == {"tree t", "tree s"}
    best = loaded(tmp_path, branches="best")[0]
    assert "a3" not in " ".join(map(said, best))


def test_rows_of_other_formats_stand_beside_messages(write, tmp_path):
    write("rows.jsonl", [FLAT[0], {"prompt": "q", "response": "a"}, *FLAT[1:]])
    found, ledger = loaded(tmp_path)
    assert found[0].messages == (Message("user", "q"), Message("assistant", "a"))
    assert (len(found), ledger.records.kept["used"]) == (5, len(FLAT) + 1)


def test_a_message_without_its_parent_is_refused_at_its_place(write, tmp_path):
    rows = [*FLAT, *flat(node("a6", node("u7")), parent="gone", message_tree_id="t"), {**FLAT[1]}]
    ring = [{**node("a7"), "parent_id": "u9"}, {**node("u9"), "parent_id": "a7"}]
    for row in ring:
        del row["replies"]
        rows.append({**row, "message_tree_id": "r"})
    write("rows.jsonl", rows)
    found, ledger = loaded(tmp_path)
    count = len(FLAT)
    assert len(found) == 4
    assert {
        reason: [place.line for place in tally.places] for reason, tally in ledger.records.left.items()
    } == {
        "the parent of a message is missing": [count + 1],
        "the messages above a message lead to no prompt": [count + 2, count + 4, count + 5],
        "two messages of a tree have one message_id": [count + 3],
    }
    orphan = next(
        record for record in read(DataSource(path="rows.jsonl"), tmp_path) if record.place.line == count + 1
    )
    assert str(orphan.value.error) == (
        f"rows.jsonl:{count + 1}: the parent of a message is missing\n"
        '  found     parent_id "gone"\n'
        "  expected  a row with this message_id, in the same tree and source\n"
        "  to fix    add the row, or remove this one and those below it"
    )


def test_without_a_tree_s_id_the_parents_are_enough(write, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "message_tree_id"} for row in FLAT]
    write("rows.jsonl", rows)
    found, _ = loaded(tmp_path)
    assert [said(one) for one in found] == [said(one) for one in convert(TREE)[0]]
    assert {one.group for one in found} == {"tree u1"}


def test_columns_with_other_names(write, tmp_path):
    names = {
        "message_id": "id",
        "parent_id": "parent",
        "message_tree_id": "tree",
        "text": "body",
        "role": "who",
    }
    write("rows.jsonl", [{names.get(key, key): value for key, value in row.items()} for row in FLAT])
    found, _ = loaded(tmp_path, fields=names)
    assert [said(one) for one in found] == [said(one) for one in convert(TREE)[0]]


def test_a_share_would_tear_trees(write, tmp_path):
    write(
        "rows.jsonl", [{key: value for key, value in row.items() if key != "message_tree_id"} for row in FLAT]
    )
    with pytest.raises(DataError, match="no share can be taken"):
        loaded(tmp_path, share=0.9)
    names = [f"t{number}" for number in range(20)]
    write("rows.jsonl", [{**row, "message_tree_id": name} for name in names for row in FLAT])
    found, ledger = loaded(tmp_path, share=0.5)
    taken = {one.group for one in found}
    assert 4 < len(taken) < 16
    assert len(found) == 4 * len(taken)
    assert ledger.records.kept["used"] == len(FLAT) * len(taken)


@pytest.mark.parametrize("empty", ["", None])
def test_in_a_table_of_several_shapes_only_what_has_an_id_and_a_text_is_a_message(write, tmp_path, empty):
    columns = [
        "question",
        "answer",
        "rationale",
        "message_id",
        "parent_id",
        "message_tree_id",
        "role",
        "text",
    ]
    asked = [{"question": f"q{n}", "answer": "a", "rationale": "r"} for n in range(40)]
    rows = [{name: row.get(name, empty) for name in columns} for row in [*asked[:1], *FLAT, *asked[1:]]]
    write("rows.jsonl", rows)
    found, ledger = loaded(tmp_path)
    assert ledger.records.num_left == 0
    assert sorted(trained(found[40:])) == sorted(trained(convert(TREE)[0]))
    assert [one.messages[0].content for one in found[:40]] == [row["question"] for row in asked]
    write("asked.jsonl", [row for row in rows if row["question"]])
    assert 10 < len(loaded(tmp_path, "asked.jsonl", share=0.5)[0]) < 30  # they are not one tree


def test_a_message_without_a_text_is_no_member(write, tmp_path):
    write("rows.jsonl", [*FLAT, {**FLAT[1], "message_id": "a0", "text": " "}])
    found, ledger = loaded(tmp_path)
    assert len(found) == 4
    assert [str(tally) for tally in ledger.records.left.values()] == [f"rows.jsonl:{len(FLAT) + 1}"]


def test_a_message_alone_says_what_is_missing():
    with pytest.raises(DataError, match="one message of a tree stands alone"):
        convert(FLAT[1])


# ---- answers in a file beside


QUESTION = {
    "id": "simple_0",
    "question": [[{"role": "user", "content": "q"}]],
    "function": [{"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}],
}
ANSWER = {"id": "simple_0", "ground_truth": [{"add": {"a": [1]}}]}


@pytest.mark.parametrize("beside", ["BFCL_v4_simple_answers.jsonl", "possible_answer/BFCL_v4_simple.jsonl"])
def test_answers_are_found_beside_their_questions(write, tmp_path, beside):
    write("BFCL_v4_simple.jsonl", [QUESTION, {**QUESTION, "id": "simple_1"}])
    source = DataSource(path="BFCL_v4_simple.jsonl")
    without = fingerprint(source, tmp_path)
    (tmp_path / "possible_answer").mkdir()
    write(beside, [ANSWER])
    found, ledger = loaded(tmp_path, source.path)
    assert found[0].messages[1].tool_calls[0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert {reason: str(tally) for reason, tally in ledger.records.left.items()} == {
        "the row has no ground truth": "BFCL_v4_simple.jsonl:2"
    }
    with_one = fingerprint(source, tmp_path)
    write(beside, [{**ANSWER, "ground_truth": [{"add": {"a": [2]}}]}])
    assert len({without, with_one, fingerprint(source, tmp_path)}) == 3


def test_branches_are_part_of_what_identifies_the_data(write, tmp_path):
    write("rows.jsonl", [TREE])
    plain, best = (
        fingerprint(DataSource(path="rows.jsonl", branches=which), tmp_path) for which in ("all", "best")
    )
    assert plain != best


def test_a_folder_of_questions_and_answers(write, tmp_path):
    (tmp_path / "all").mkdir()
    write("all/BFCL_v4_simple.jsonl", [QUESTION])
    write("all/BFCL_v4_simple_answers.jsonl", [ANSWER])
    found, ledger = loaded(tmp_path, "all")
    assert (len(found), ledger.records.kept["used"], ledger.records.num_left) == (1, 2, 0)
    assert json.dumps(found[0].messages[1].tool_calls)


@pytest.mark.parametrize("beside", ["BFCL_v4_simple_answers.jsonl", "possible_answer/BFCL_v4_simple.jsonl"])
def test_answers_are_used_by_questions_alone(write, tmp_path, beside):
    """Answers whose questions are not there are refused, and those that are used are not called messages of trees."""
    (tmp_path / "all" / "possible_answer").mkdir(parents=True)
    write(f"all/{beside}", [ANSWER])
    write("all/other.jsonl", [{"prompt": "q", "response": "a"}])
    found, ledger = loaded(tmp_path, "all")
    assert (len(found), list(ledger.records.left)) == (1, ["the row is a ground truth without its question"])
    write("all/BFCL_v4_simple.jsonl", [QUESTION])
    found, ledger = loaded(tmp_path, "all")
    assert (len(found), ledger.records.num_left) == (2, 0)
    shapes = {shape.format: shape for shape in survey([DataSource(path=str(tmp_path / "all"))]).shapes}
    assert shapes.keys() == {"answers of bfcl", "bfcl", "prompt_response"}
    assert shapes["answers of bfcl"].evidence.reason == "the ground truth that the questions beside use"
    assert shapes["answers of bfcl"].rows == shapes["bfcl"].rows == 1
