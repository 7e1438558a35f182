"""No message grows with the data that it tells of."""

import pytest

from imprint.data.conversation import Place
from imprint.data.faults import bad_row, cut, listed, show
from imprint.errors import DataError

LONG = "add" * 50_000
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_what_is_cut():
    assert cut("abc", 3) == "abc"
    assert cut("abcdef", 5) == "ab..."
    assert listed({"a": 1, "b": 2}) == "a, b"
    assert listed(map(str, range(40))).endswith("28, 29, … (40)")
    assert len(listed([LONG, "x"])) == 83
    assert len(show(LONG)) == 80
    error = bad_row("what", Place("x", 1), LONG, LONG, LONG)
    assert {len(part) for part in (error.found, error.expected, error.fix)} == {1000}


@pytest.mark.parametrize(
    "row",
    [
        {LONG: "x"},
        {f"message{LONG}": "x", "prompt": "q"},
        {f"c{number}": LONG for number in range(5000)},
        {"messages": [{LONG: "x"}]},
        {"messages": [{"role": LONG, "content": "x"}]},
        {"messages": [*TALK[:1], {**TALK[1], "weight_" + "_" * 150_000: LONG}]},
        {"messages": TALK, "Tools" + "_" * 150_000: LONG},
        {"messages": TALK, "tools": LONG},
        {"question": [TALK[:1]], "function": [{"name": LONG}], "ground_truth": [{f"{LONG}x": {}}]},
        {"id": f"irrelevance{LONG}", "question": [TALK[:1]], "function": [{"name": "f"}]},
        {
            "Instructions": ["q"],
            "Golden_Answers": [[]],
            "Documentation": {"paths": {"/": {"get": {LONG: 1}}}},
        },
    ],
    ids=range(11),
)
@pytest.mark.parametrize("format", ["auto", "alpaca"])
def test_the_messages_of_rows_with_long_names(convert, row, format):
    with pytest.raises(DataError) as caught:
        convert(row, format=format)
    assert len(str(caught.value)) < 4000
