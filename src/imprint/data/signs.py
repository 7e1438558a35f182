"""Signs in a text that something went wrong before: only such as are right nearly always."""

from __future__ import annotations

import re
from collections.abc import Iterator

PLACEHOLDER = "a placeholder such as {{name}} is not filled in"
CONTROL = "a control token of a chat template stands in the text"
MOJIBAKE = "UTF-8 was read as another encoding (Ã© for é)"
REPLACED = "characters were lost: the replacement character �"
ENTITIES = "HTML entities (&amp;) stand in the text"
OPEN_CODE = "a reply ends inside a block of code: it may be cut off"
NO_TEXT = "the text is a value that a program left: nan, [object Object]"
NOTHING = "the text is a word that stands for nothing: NULL, NA, #N/A"
NO_INPUT = "<noinput>, nan or NULL stands for an input that is missing"
ALL_CUT = "many replies have exactly the length of the longest: they may be cut off"

HELP = {
    PLACEHOLDER: "fill it in, in every row, or the model will say it so",
    CONTROL: "training leaves out the replies behind it, unless control_tokens says otherwise",
    MOJIBAKE: "write the file anew from its source, read as UTF-8",
    REPLACED: "write the file anew from its source",
    ENTITIES: "unescape them, unless the rows are about HTML",
    OPEN_CODE: "look whether the reply is whole",
    NO_TEXT: "remove the row, or write the text",
    NOTHING: "remove the row, unless the word is what is meant",
    NO_INPUT: "remove the word: an empty input is left away",
    ALL_CUT: "look whether the replies are whole",
}

_ANY = re.compile(
    r"\{\{|<\||\[/?INST\]|<</?SYS>>|<start_of_turn>|<end_of_turn>|</s>|[ÃÂâï\ufffd]|&[#a-z]|```|<no"
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# {{name}}, but not LaTeX (x_{{n}}), nor a template of a program, which has other marks beside it
_PLACEHOLDER = re.compile(r"(?<![\w\\{}^_$])\{\{ ?[A-Za-z][A-Za-z_]{2,30} ?\}\}(?!\})")
_PROGRAM = re.compile(
    r"\{%|\{\{[#/^]|\\begin|\\frac|v-for|ng-|jinja|mustache|handlebars|liquid|placeholder", re.IGNORECASE
)
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|end_of_text|begin_of_text|eot_id|eom_id|start_header_id|end_header_id"
    r"|user|assistant|system|end|start|return|channel|message)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>\s*\Z"
)
# the bytes of a character above U+007F, each shown as a character of Windows-1252 or Latin-1
_TRAIL = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"Ã{_TRAIL}|Â[\u00a0-\u00bf]|â€{_TRAIL}|ï»¿|ï¿½|ðŸ{_TRAIL}")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#0?39|#x27|#34);")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|\bhtml\b|\bxml\b|\bentit|\bescap|\bencod|\burl", re.IGNORECASE)
_JUNK = {"nan", "NaN", "[object Object]"}
# None and undefined are not among them: replies about programs are just that
_NOTHING = {"NULL", "null", "NA", "N/A", "n/a", "<NA>", "#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!"}
_ENDS = tuple(f"\n\n{word}" for word in ("nan", "NaN", "NULL", "null", "<NA>", "#N/A"))


def signs(text: str, *, reply: bool = False, control: re.Pattern[str] | None = None) -> Iterator[str]:
    """The signs in one text, each once. `control` finds the control tokens of the tokenizer, where there is one."""
    if len(text) <= 20:
        word = text.strip()
        if word in _JUNK:
            yield NO_TEXT
        elif word in _NOTHING:
            yield NOTHING
    if not reply and text.endswith(_ENDS) and "<noinput>" not in text:
        yield NO_INPUT
    if control is not None and control.search(text):
        yield CONTROL
    if not _ANY.search(text):
        return
    if control is None and _CONTROL.search(text):
        yield CONTROL
    if "\ufffd" in text:
        yield REPLACED
    if _MOJIBAKE.search(text):
        yield MOJIBAKE
    if "<noinput>" in text:
        yield NO_INPUT
    if reply and _ends_in_code(text):
        yield OPEN_CODE
    if "{{" not in text and "&" not in text:
        return
    prose = _CODE.sub("", text) if "`" in text else text
    if _PLACEHOLDER.search(prose) and not _PROGRAM.search(text):
        yield PLACEHOLDER
    if _ENTITY.search(prose) and not _MARKUP.search(text):
        yield ENTITIES


def _ends_in_code(text: str) -> bool:
    """Whether a fence at the beginning of a line is not closed by another."""
    fences = re.findall(r"^[ \t>]*(`{3,})(.*)$", text, re.MULTILINE)
    opened = ""
    for fence, rest in fences:
        if not opened:
            opened = fence if "`" not in rest else ""
        elif len(fence) >= len(opened) and not rest.strip():
            opened = ""
    return bool(opened)
