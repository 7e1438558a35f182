"""What the lessons show, in words made of the figures.

No sentence about a result is fixed: each says which way it went, and whether that may be chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from imprint.demo.trials import Found
from imprint.evaluate.marks import Marks

Rows = Sequence[tuple[str, Found]]  # what differs, in words; what was found


def percent(share: float) -> str:
    """Without a decimal, and never 0 or 100 % of what is not none or all."""
    rounded = round(100 * share)
    return f"{100 * share:.1f} %" if rounded in (0, 100) and share not in (0, 1) else f"{rounded} %"


def counted(marks: Marks) -> str:
    return f"{percent(marks.share)} ({marks.right:,} of {marks.asked:,})"


def pooled(found: Sequence[Found]) -> Marks:
    """The held-out marks of several trials as one."""
    marks = [one.held_out for one in found]
    return Marks(
        "held-out entities",
        *(sum(getattr(one, name) for one in marks) for name in ("asked", "right", "stopped", "different")),
    )


def apart(one: Marks, other: Marks) -> bool:
    """Whether the intervals do not overlap."""
    (low, high), (other_low, other_high) = one.interval, other.interval
    return high < other_low or other_high < low


def verdict(first: Marks, second: Marks) -> str:
    """How the first differs from the second, and whether that is more than chance."""
    if first.share == second.share:
        return "no difference"
    points = f"{100 * abs(first.share - second.share):.1f} points"
    way = "more" if first.share > second.share else "fewer"
    sure = (
        "the intervals do not overlap" if apart(first, second) else "the intervals overlap: it may be chance"
    )
    return f"{points} {way}; {sure}"


def moved(before: float, after: float) -> str:
    """`from 0.80 to 1.95 (+1.15)`, of a loss."""
    return f"from {before:.2f} to {after:.2f} ({after - before:+.2f})"


def masking(rows: Rows) -> str:
    replies, whole = (
        [f for label, f in rows if "replies" in label],
        [f for label, f in rows if "every" in label],
    )
    first, second = pooled(replies), pooled(whole)
    ahead = sum(a.held_out.right > b.held_out.right for a, b in zip(replies, whole, strict=True))
    return (
        f"Trained on the replies only, the models answered {counted(first)} of the held-out questions; trained on "
        f"every token, {counted(second)}. That is {verdict(first, second)}. Replies only was ahead with {ahead} "
        f"of {len(replies)} seeds, each asked the same questions."
    )


def replay(rows: Rows) -> str:
    (_, none), (_, last) = rows[0], rows[-1]
    told = ", ".join(f"{label} {moved(f.general_before, f.general)}" for label, f in rows)
    less = none.general - last.general
    kept = (
        f"{less:.2f} nats less than"
        if less > 0
        else f"{-less:.2f} nats more than"
        if less < 0
        else "as much as"
    )
    best = max(rows, key=lambda row: row[1].held_out.share)
    return (
        f"Loss on general text, by the share of replay: {told}. With {rows[-1][0]} the model forgot {kept} without "
        f"any. Of the held-out questions, it then got {counted(last.held_out)} right, and without any replay "
        f"{counted(none.held_out)} ({verdict(last.held_out, none.held_out)}); most were right with {best[0]}."
    )


def how_many(rows: Rows) -> str:
    equal = [(label, f) for label, f in rows if not label.endswith("× 1") or f is rows[-1][1]]
    (few_label, few), (many_label, many) = equal[0], equal[-1]
    shares = [f.held_out.share for _, f in equal]
    steady = "each step up helped" if shares == sorted(set(shares)) else "not each step up helped"
    return (
        f"With about equally many steps (demonstrations × passes), {few_label} got {counted(few.held_out)} of the "
        f"held-out questions right, and {many_label} got {counted(many.held_out)}: "
        f"{verdict(many.held_out, few.held_out)}. From few to many, "
        f"{steady}."
    )


def noise(rows: Rows) -> str:
    (_, clean), *others = rows
    told = "; ".join(
        f"with {label}, {counted(f.held_out)} ({verdict(f.held_out, clean.held_out)})" for label, f in others
    )
    return f"Clean demonstrations got {counted(clean.held_out)} of the held-out questions right; {told}."


def epochs(rows: Rows) -> str:
    best, last = max(rows, key=lambda row: row[1].held_out.share), rows[-1]
    lowest = min(reversed(rows), key=lambda row: row[1].held_out_loss)  # of equal ones the last
    first = rows[0][1]
    rose = last[1].held_out_loss - lowest[1].held_out_loss
    turn = f"and rose by {rose:.3f} until {last[0]}" if rose > 0 else "at the end"
    if best[0] == last[0]:
        marks = f"The most held-out questions were right after {best[0]}: {counted(best[1].held_out)}"
        marks += "; so far, repeating did no harm that shows here" if rose == 0 else ""
    else:
        marks = (
            f"The most held-out questions were right after {best[0]}, {counted(best[1].held_out)}; after {last[0]}, "
            f"{counted(last[1].held_out)} ({verdict(last[1].held_out, best[1].held_out)})"
        )
    return (
        f"The loss on the demonstrations went from {first.seen_loss:.3f} to {last[1].seen_loss:.3f}. On held-out "
        f"answers it was lowest after {lowest[0]} ({lowest[1].held_out_loss:.3f}), {turn}. {marks}."
    )


def lora(rows: Rows) -> str:
    (_, full), *adapters = rows
    label, best = max(adapters, key=lambda row: row[1].held_out.share)
    _, worst = min(adapters, key=lambda row: row[1].held_out.share)
    least = "less" if best.general < full.general else "more" if best.general > full.general else "as much"
    return (
        f"Full training got {counted(full.held_out)} of the held-out questions right. The best adapter, {label}, "
        f"trained {percent(best.num_trainable / full.num_trainable)} as many numbers and got {counted(best.held_out)} "
        f"({verdict(best.held_out, full.held_out)}); the worst choice of rank and rate got "
        f"{percent(worst.held_out.share)}. The best adapter forgot {least}: general text is at {best.general:.2f}, "
        f"with full training at {full.general:.2f}."
    )


def template(rows: Rows) -> str:
    (_, right), *others = rows
    told = "; ".join(
        f"through {label}, {counted(f.held_out)}, and {percent(f.held_out.stopped / f.held_out.asked)} of the "
        f"answers ended by themselves"
        for label, f in others
    )
    return (
        f"Asked as it was trained, the model answered {counted(right.held_out)} of the held-out questions and ended "
        f"{percent(right.held_out.stopped / right.held_out.asked)} of its answers by itself; {told}."
    )
