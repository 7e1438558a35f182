"""Names of columns and keys whose meaning is known everywhere: text under them belongs to what is said.

They are in lower case. Where a row's format does not use such a column, what it holds is told or refused.
"""

from __future__ import annotations

ASKS = {
    "instruction", "instructions", "question", "questions", "query", "prompt", "problem", "request", "inquiry",
    "user_prompt", "user_input", "user_query", "user_message", "task_description", "task_instruction", "task",
}  # fmt: skip
SYSTEMS = {
    "system_message", "system_instruction", "system_instructions", "system_text", "system_content", "sys_prompt",
    "sys", "sysprompt",
}  # fmt: skip
ABOUT = {
    "input",
    "context",
    "passage",
    "document",
    "article",
    "background",
    "knowledge",
    "evidence",
}  # a question
CONTEXTS = ABOUT | {
    "inputs", "contexts", "passages", "documents", "choices", "options", "history", "constraints", "hint", "hints",
    "examples", "persona", "preamble", "attachments", "definition", "text",
}  # fmt: skip
THOUGHTS = {
    "thought", "thoughts", "think", "thinking", "reasoning", "reasoning_content", "reasoning_text", "rationale",
    "chain_of_thought", "cot", "explanation", "scratchpad",
}  # fmt: skip
REPLIES = {
    "output", "outputs", "response", "responses", "answer", "answers", "completion", "completions", "reply",
    "solution", "target", "targets", "assistant", "chosen", "rejected", "rejected_response", "rejected_messages",
    "non_preferred_output", "instances",
}  # fmt: skip
SPEAKING = ASKS | SYSTEMS | CONTEXTS | THOUGHTS | REPLIES
MEDIA = {"image", "images", "audio", "audios", "video", "videos"}


def holds(value: object) -> bool:
    """Whether a value would change what is trained if it were read: 0 and false would."""
    return (
        bool(value.strip()) if isinstance(value, str) else value is not None and value != [] and value != {}
    )


def speaks(value: object) -> bool:
    """Whether a value is a text, or a list or an object with one in it, at any depth."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str) and inner.strip():
            return True
        if isinstance(inner, (list, dict)):
            waiting += inner.values() if isinstance(inner, dict) else inner
    return False
