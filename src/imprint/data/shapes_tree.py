"""OpenAssistant's trees: a prompt with replies, each with further prompts, as conversations.

Each reply is trained exactly once, in its own context: there is one conversation for each path from
the root down to a last reply, and in it the replies that an earlier path trains have weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imprint.data.conversation import Message, Place
from imprint.data.faults import bad_row, show
from imprint.data.messages import ALIASES
from imprint.data.shapes import Draft, Row

REMOVED = "a message that is marked deleted, or failed its review, is left out with what answers it"
UNRANKED = "of several replies without a rank, branches=best takes the first"
ANSWERS = "answers of bfcl"  # what a row of ground truth is beside its questions
TREE_KEYS = ("message_id", "parent_id", "message_tree_id", "text", "role", "rank", "deleted", "review_result")


class Tree(NamedTuple):
    """Stands in a record for the messages of one tree that lay in rows of their own.

    `removed` are the places of those of its messages that are left out, by their message_id.
    """

    row: Row
    removed: dict[str, Place]


class Member(NamedTuple):
    """Stands in a record for a row that is used as a part of one at another place; `of` says what it is there."""

    root: Place
    of: str = "oasst_messages"


class _Node(NamedTuple):
    """Messages that say the same in the same place of the tree: one to learn from."""

    role: str
    given: Row
    replies: list[_Node]


def is_tree(row: Row) -> bool:
    prompt = row["prompt"]
    return isinstance(prompt, dict) and "replies" in prompt


def is_removed(message: Row) -> bool:
    """Whether a message is marked deleted, or failed its review."""
    return message.get("deleted") is True or message.get("review_result") is False


def is_tree_message(value: Any) -> bool:
    """Whether a row is one message of a tree, to be gathered with the others."""
    return (
        isinstance(value, dict)
        and "message_id" in value
        and ("message_tree_id" in value or "parent_id" in value)
        and isinstance(value.get("text"), str)
        and isinstance(value.get("role"), str)
        and "replies" not in value
    )


def trees(
    row: Row, place: Place, branches: str = "all", places: Mapping[str, Place] | None = None
) -> list[Draft]:
    """The conversations of a tree; branches="best" keeps of several replies the one of the lowest rank.

    `places` are those of messages that lay in rows of their own, by message_id; the others lie at `place`.
    """
    removed: list[Row] = []
    roots = _nodes([row["prompt"]], place, removed)
    group = "tree " + str(row.get("message_tree_id") or row["prompt"].get("message_id") or place)
    drafts = [_draft(path, first, group) for root in roots for path, first in _paths(root, branches)]
    if not drafts:
        raise bad_row(
            "the tree holds no reply",
            place,
            f"{len(removed)} of its messages are deleted or failed review"
            if removed
            else show(row["prompt"]),
            "a reply that is neither deleted nor failed its review",
            "remove the row",
        )
    if removed:
        at = [(places or {}).get(str(one.get("message_id")), place) for one in removed]
        drafts[0] = drafts[0]._replace(notes_at=tuple((REMOVED, one) for one in at))
    if branches == "best" and any(_is_unranked(root) for root in roots):
        drafts[0] = drafts[0]._replace(notes=(UNRANKED,))
    return drafts


def alone(row: Row, place: Place) -> list[Draft]:
    """A message of a tree that was not gathered with the others: only whole sources can be."""
    raise bad_row(
        "one message of a tree stands alone",
        place,
        f"message_id {show(row['message_id'])}",
        "the rows of the whole tree",
        "give the file that holds the tree",
    )


def _nodes(values: list[Any], place: Place, removed: list[Row]) -> list[_Node]:
    """The nodes under one parent, without those that were removed; equal ones are one. No recursion: trees are deep."""
    top: list[_Node] = []
    waiting: list[tuple[list[Any], list[_Node]]] = [(values, top)]
    for given, into in waiting:  # which grows
        known = {(node.role, node.given["text"]): node for node in into}
        for value in given:
            if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                raise _unreadable(value, place)
            if is_removed(value):
                removed.append(value)
                continue
            role = ALIASES.get(str(value.get("role")).lower())
            if role not in ("user", "assistant"):
                raise _unreadable(value, place)
            node = known.get((role, value["text"]))
            if node is None:
                node = known[role, value["text"]] = _Node(role, value, [])
                into.append(node)
            replies = value.get("replies")
            if replies:
                if not isinstance(replies, list):
                    raise _unreadable(value, place)
                waiting.append((replies, node.replies))
    return top


def _unreadable(value: Any, place: Place) -> Exception:
    return bad_row(
        "a message of the tree cannot be read",
        place,
        show(value),
        'an object with "role" (prompter or assistant), "text" and "replies"',
        "write it in this form",
    )


def _paths(root: _Node, branches: str) -> Iterator[tuple[list[_Node], int]]:
    """Each way from the root to a last reply, and how many of its nodes earlier ways went through."""
    path: list[_Node] = []
    told = 0
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        del path[depth:]
        told = min(told, depth)
        path.append(node)
        following = _chosen(node.replies, branches)
        waiting += [(reply, depth + 1) for reply in reversed(following)]
        if node.role == "assistant" and not any(_answers(reply, branches) for reply in following):
            yield list(path), told
            told = depth + 1


def _answers(node: _Node, branches: str) -> bool:
    """Whether a reply stands at or below a node."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.role == "assistant":
            return True
        waiting += _chosen(node.replies, branches)
    return False


def _chosen(replies: list[_Node], branches: str) -> list[_Node]:
    """The replies to follow: all, or of the assistant's the best alone: a ranked one, else the first."""
    if branches == "all":
        return replies
    said = [node for node in replies if node.role == "assistant"]
    best = min(said, key=_rank, default=None)
    return [node for node in replies if node.role != "assistant" or node is best]


def _is_unranked(root: _Node) -> bool:
    """Whether somewhere, of what is followed, the best of several replies had to be chosen without any rank."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        said = [_rank(reply) for reply in node.replies if reply.role == "assistant"]
        if len(said) > 1 and min(said) == float("inf"):
            return True
        waiting += _chosen(node.replies, "best")
    return False


def _rank(node: _Node) -> float:
    rank = node.given.get("rank")
    return float(rank) if isinstance(rank, (int, float)) and rank == rank else float("inf")


def _draft(path: list[_Node], told: int, group: str) -> Draft:
    messages = tuple(
        Message(node.role, node.given["text"], weight=0.0 if node.role == "assistant" and at < told else None)
        for at, node in enumerate(path)
    )
    return Draft(messages, id=str(path[-1].given.get("message_id") or ""), group=group)
