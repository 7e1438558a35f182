"""The Go template of what was learned of a Jinja template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from imprint.export.gotemplate_quotes import quoted
from imprint.export.ollama_learn import END, FIRST, START, SYSTEM, Glue, Learned, Place

ROLES = ("system", "user", "assistant")
# What Python's str.strip, and so Jinja's trim, removes. Go's templates can only look at bytes: by how many
# bytes a character has in UTF-8.
_ASCII = "or (and (ge $c 9) (le $c 13)) (and (ge $c 28) (le $c 32))"
_SPACES = {
    2: "\x85\xa0",
    3: "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
}


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Do:
    code: str


_Parts = list[_Text | _Do]


def go_template(learned: Learned) -> str:
    """The source. A message that has no place makes it fail, so that nothing is left out in silence."""
    tails = _tails(learned.glue)  # what belongs to the message before, whatever comes behind it
    heads = {place: _without(found, tails.get(place.before, "")) for place, found in learned.glue.items()}
    body: _Parts = []
    for role in ROLES:
        choices = {place: head for place, head in heads.items() if place.after == role}
        body.append(_Do(f'{"else " if body else ""}if eq .Role "{role}"'))
        if choices:
            body += [*_misplaced(learned, role), *_chosen(choices, role)]
            body += [*_content(learned, role), *_texts(tails.get(role, ""))]
        elif role == "system" and not learned.refuses:  # told elsewhere, and only as the first message
            body += [_Do("if $i"), _fail("a system message here"), _Do("end")]
        else:
            body.append(_fail(f"a {role} message"))
    body += [_Do("else"), _fail("a message of this role"), _Do("end")]
    closing = {place: head for place, head in heads.items() if place.after == END}
    ends = [*_misplaced(learned, END), *_chosen(closing, END)]
    return _definitions(learned.trims.values()) + _written(_looped(body, ends, learned.inline))


def _looped(body: _Parts, ends: _Parts, inline: bool) -> _Parts:
    """The loop over the messages, with the variables that its body asks for."""
    codes = [part.code for part in (*body, *ends) if isinstance(part, _Do)]
    tracks = any("$before" in code for code in codes)
    names = "$i, $_ := " if any("$i" in code for code in codes) else ""
    kept: _Parts = [_Do("$before = .Role")] if tracks else []
    if tracks and not inline:  # the system message is told elsewhere: it is before nothing
        kept = [_Do('if ne .Role "system"'), *kept, _Do("end")]
    first: _Parts = [_Do('$before := ""')] if tracks else []
    return [*first, _Do(f"range {names}.Messages"), *body, *kept, _Do("end"), *ends]


# ---- what belongs to which message --------------------------------------------------------------


def _tails(glue: Mapping[Place, Glue]) -> dict[str, str]:
    """The text behind each role that is the same whatever follows, so far as it reads well."""
    head = _common_end([_last(found) for place, found in glue.items() if place.after == "user"])
    out = {}
    for role in ("system", "assistant"):
        out[role] = _common_start(
            [_first(found).removesuffix(head) for place, found in glue.items() if _joins(place, role, "user")]
        )
    shared = _common_start([_first(found) for place, found in glue.items() if place.before == "user"])
    after = out["assistant"]
    out["user"] = after if after and shared.startswith(after) else shared
    return {role: text for role, text in out.items() if _fits(glue, role, text)}


def _joins(place: Place, before: str, after: str) -> bool:
    return (place.before, place.after) == (before, after)


def _fits(glue: Mapping[Place, Glue], role: str, text: str) -> bool:
    return bool(text) and all(
        _first(found).startswith(text) for place, found in glue.items() if place.before == role
    )


def _first(glue: Glue) -> str:
    return glue[0] if glue and glue[0] != SYSTEM else ""


def _last(glue: Glue) -> str:
    return glue[-1] if glue and glue[-1] != SYSTEM else ""


def _common_start(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same]


def _common_end(texts: Sequence[str]) -> str:
    return _common_start([text[::-1] for text in texts])[::-1]


def _without(glue: Glue, text: str) -> Glue:
    if not text:
        return glue
    rest = glue[0][len(text) :]
    return (rest, *glue[1:]) if rest else glue[1:]


# ---- what stands before a message ---------------------------------------------------------------


def _chosen(choices: Mapping[Place, Glue], role: str) -> _Parts:
    """The glue before a message of this role, or the end, told apart by as little as it takes."""
    if len(set(choices.values())) == 1:
        glue = next(iter(choices.values()))
        return [_Do("$.System") if part == SYSTEM else _Text(part) for part in glue]
    splits: list[tuple[int, int, str, dict[Place, Glue], dict[Place, Glue]]] = []
    for code, test in _questions(choices, role):
        yes = {place: found for place, found in choices.items() if test(place)}
        no = {place: found for place, found in choices.items() if not test(place)}
        if yes and no:  # the best question leaves the fewest different texts on its two sides
            splits.append((len(set(yes.values())) + len(set(no.values())), len(splits), code, yes, no))
    _, _, code, yes, no = min(splits, key=lambda split: split[:2])
    first, second = _chosen(yes, role), _chosen(no, role)
    if not first:
        return [_Do(f"if not ({code})"), *second, _Do("end")]
    return [_Do(f"if {code}"), *first, *([_Do("else"), *second] if second else []), _Do("end")]


def _questions(choices: Mapping[Place, Glue], role: str) -> Iterable[tuple[str, Callable[[Place], bool]]]:
    for before in (START, *ROLES):
        if before != role:
            yield _is_before(before), lambda place, before=before: place.before == before  # type: ignore[misc]
    yield _LED, lambda place: place.led
    if role != END:
        yield "eq (len (slice $.Messages $i)) 1", lambda place: place.last


_LED = 'eq (index $.Messages 0).Role "system"'


def _is_before(role: str) -> str:
    return "not $before" if role == START else f'eq $before "{role}"'


def _misplaced(learned: Learned, role: str) -> _Parts:
    """A failure for a message, or an end, where the template was never seen to take it."""
    known = {(place.before, place.led) for place in learned.glue if place.after == role}
    tests = []
    for before in (START, *ROLES):
        possible = {led for led in (False, True) if _can_be(learned, before, role, led)}
        unknown = {led for led in possible if (before, led) not in known}
        if unknown and unknown == possible:
            tests.append(_is_before(before))
        elif unknown:
            led = _LED if True in unknown else f"not ({_LED})"
            tests.append(f"and ({_is_before(before)}) ({led})")
    if not tests:
        return []
    code = tests[0] if len(tests) == 1 else "or " + " ".join(f"({test})" for test in tests)
    what = {END: "an end here", "assistant": "an assistant message here"}.get(role, f"a {role} message here")
    return [_Do(f"if {code}"), _fail(what), _Do("end")]


def _can_be(learned: Learned, before: str, role: str, led: bool) -> bool:
    """Whether a message of `role`, or the end, can come behind one of `before`, and nothing has failed yet.

    Messages of one role in a row do not come: Ollama joins them.
    """
    if before == role or (learned.refuses and (led or "system" in (before, role))):
        return False
    if before == START:
        return led == (role == "system") and role != END if learned.inline else led or role != END
    if before == "system":
        later = any(place.after == "system" and place.before != START for place in learned.glue)
        return learned.inline and (led or later)
    return True


def _fail(what: str) -> _Do:
    # Go's templates cannot raise: a slice beyond its text stops them, and the error shows the text
    return _Do(f"slice {quoted(f'the chat template of this model has no place for {what}')} 999")


# ---- the text of a message ----------------------------------------------------------------------


def _content(learned: Learned, role: str) -> _Parts:
    usual = _trimmed(learned.trims.get(role))
    if role != "user" or FIRST not in learned.trims:
        return [usual]
    first = 'eq $before "system"' if learned.inline else f"and (not $before) ({_LED})"
    return [_Do(f"if {first}"), _trimmed(learned.trims[FIRST]), _Do("else"), usual, _Do("end")]


def _trimmed(trim: str | None) -> _Do:
    return _Do(f'template "{trim}" .Content' if trim else ".Content")


def _texts(text: str) -> _Parts:
    return [_Text(text)] if text else []


def _definitions(trims: Iterable[str]) -> str:
    """Templates that write a text without the white space at its ends, as Jinja's trim does."""
    wanted = set(trims)
    out = ""
    for name in ("strip", "lstrip"):
        if name in wanted:
            rest = '{{ template "rstrip" . }}' if name == "strip" else "{{ . }}"
            out += _definition(
                name, lambda size: f"slice . 0 {size}", lambda size: f"slice . {size}", "0", rest
            )
    if wanted & {"strip", "rstrip"}:
        out += _definition(
            "rstrip",
            lambda size: f"slice . (len (slice . {size}))",
            lambda size: f"slice . 0 (len (slice . {size}))",
            "(len (slice . 1))",
            "{{ . }}",
        )
    return out


def _definition(
    name: str, end: Callable[[int], str], without: Callable[[int], str], first: str, rest: str
) -> str:
    """A template that calls itself for each character of white space at one end of its text."""
    tests = [(_ASCII, 1)]
    for size, chars in _SPACES.items():
        known = " ".join(quoted(char) for char in chars)
        tests.append((f"and (ge (len .) {size}) (eq ({end(size)}) {known})", size))
    cases = "\n".join(
        f'{{{{- {"else " if number else ""}if {test} }}}}{{{{ template "{name}" ({without(size)}) }}}}'
        for number, (test, size) in enumerate(tests)
    )
    return (
        f'{{{{- define "{name}" }}}}{{{{ if . }}}}{{{{ $c := index . {first} }}}}\n'
        f"{cases}\n{{{{- else }}}}{rest}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}\n"
    )


# ---- as text ------------------------------------------------------------------------------------


def _written(parts: _Parts) -> str:
    """The source: between two actions with no text a line break, which Go trims away."""
    out, follows_action = "", True
    for part in parts:
        if isinstance(part, _Text):
            out += _literal(part.text)
            follows_action = False
        else:
            out += ("\n{{- " if follows_action and out else "{{- " if not out else "{{ ") + part.code + " }}"
            follows_action = True
    return out


def _literal(text: str) -> str:
    """Text as it stands in a template, or as a Go string where Go or a Modelfile would read it otherwise."""
    if "{{" in text or '"""' in text or text[-1] in '{"' or not text.replace("\n", "").isprintable():
        return f"{{{{ {quoted(text)} }}}}"
    return text
