"""Writes tables.md, and the README's part of it, from what run.py measured: python tables.py [DIR]."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
START, END = "<!-- written by tables.py -->", "<!-- end -->"
SIGNS = {"holds": "**holds**", "does not": "no", "undecided": "undecided", "neither": "neither"}
MODES = {"fixed": "the article's rate", "tuned": "rate tuned"}


def named(depth):
    return "784-128-10" if depth == "0" else f"depth {depth}"


def number(pair, digits):
    """Mean and standard error."""
    mean, error = pair
    return "infinite" if mean is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def lines(head, rows):
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def rate(measured, row):
    """The learning rate, starred at the ends of the grid."""
    rates = measured["setting"]["rates"]
    return f"{row['rate']:g}" + ("*" if row["rate"] in (rates[0], rates[-1]) else "")


def steps(measured, row):
    """Updates to the goal; how many seeds came there, unless all or none did."""
    if not row["reached"]:
        return "never"
    mean = "once" if row["steps"][0] is None else number(row["steps"], 0)
    seeds = measured["setting"]["seeds"]
    return mean if row["reached"] == seeds else f"{mean} ({row['reached']} of {seeds})"


def test(row):
    return number(row["test"], 3) + (f", {row['diverged']} diverged" if row["diverged"] else "")


def holding(measured):
    """Where each claim holds of which single cures, and of which it nowhere does."""
    table = measured["verdicts"]
    single = [name for name, kind in measured["kinds"].items() if kind not in ("baseline", "pair")]
    places = [(mode, depth) for depth in table["fixed"] for mode in table if depth in table[mode]]
    claims = list(table["fixed"]["0"]["sigmoid"])
    word = lambda place, name, claim: table[place[0]][place[1]][name][claim][0]
    listed = lambda names: ", ".join(names) or "none"

    def of(claim, place):
        there = [name for name in single if name in table[place[0]][place[1]]]
        return listed([name for name in there if word(place, name, claim) == "holds"])

    def nowhere(claim):
        words = {
            name: {word(p, name, claim) for p in places if name in table[p[0]][p[1]]}
            for name in single
        }
        sure = [name for name in single if words[name] <= {"does not", "neither"}]
        unsure = [f"({name})" for name in single if "holds" not in words[name] and name not in sure]
        return listed(sure + unsure)

    rows = [[f"{named(p[1])}, {MODES[p[0]]}", *(of(claim, p) for claim in claims)] for p in places]
    rows.append(["**nowhere**; in brackets, undecided somewhere", *map(nowhere, claims)])
    return lines(["holds of", *(f"*{claim}*" for claim in claims)], rows)


def overview(measured, mode):
    """Updates to 90 % and test accuracy of every cure at every depth."""
    rows, depths = measured["rows"][mode], list(measured["rows"][mode])

    def cell(name, depth):
        row = rows[depth].get(name)
        if row is None:
            return "no block"
        came = "" if not row["reached"] else f"; {steps(measured, row)}"
        return (
            number(row["test"], 3)
            + came
            + (f"; at {rate(measured, row)}" if mode == "tuned" else "")
        )

    head = ["", *(f"{named(d)}, {rows[d]['sigmoid']['updates']:,} updates" for d in depths)]
    return lines(
        head, [[name, *(cell(name, depth) for depth in depths)] for name in measured["kinds"]]
    )


def full(measured, mode, depth):
    """All that was measured of every cure at one depth."""
    tuned = ["rate"] if mode == "tuned" else []
    head = [
        "",
        *tuned,
        "updates to 90 %",
        "train",
        "test",
        "ln gradient: least",
        "most",
        "spread",
        "steps clipped",
    ]

    def cells(name, row):
        gradients = [number(row[field], 1) for field in ("low", "high", "spread")]
        known = [
            steps(measured, row),
            number(row["train"], 3),
            test(row),
            *gradients,
            f"{row['clipped']:.0%}",
        ]
        return [name, *(rate(measured, row) for _ in tuned), *known]

    return lines(head, [cells(name, row) for name, row in measured["rows"][mode][depth].items()])


def said(verdict, claim):
    """A verdict with the benefit that it is about."""
    word, mean, error = verdict
    if mean is None:
        return SIGNS[word] + (", runs diverged" if word != "neither" else "")
    factor, unit, digits = {
        "speeds training": (1, "", 2),
        "improves accuracy": (100, " points", 1),
        "explanations agree": (1, "", 2),
    }.get(claim, (1, " nats", 2))
    return f"{SIGNS[word]}, {mean * factor:+.{digits}f} ± {error * factor:.{digits}f}{unit}"


def verdicts(measured, mode, depth):
    """Every claim for every cure at one depth."""
    table = {
        name: row for name, row in measured["verdicts"][mode][depth].items() if name != "sigmoid"
    }
    claims = list(measured["verdicts"][mode][depth]["sigmoid"])
    return lines(
        ["", *claims], [[name, *(said(row[c], c) for c in claims)] for name, row in table.items()]
    )


def moments(row, field, digits):
    """A number of the maps, before training and after it; a dash where there is none."""
    pair = [row[f"{time}_{field}"] for time in ("start", "end")]
    return ["-" if one[0] is None else number(one, digits) for one in pair]


def maps(measured, depth):
    """What the saliency maps of every cure at one depth are like, with the verdicts."""
    claims = list(measured["explained_verdicts"][depth]["sigmoid"])
    fields = {
        "noise, cosine": ("nearby", 2),
        "ln signal / noise": ("noise", 1),
        "seeds, cosine": ("seeds", 2),
        "class, cosine": ("others", 2),
    }
    head = [f"{name}: {time}" for name in fields for time in ("start", "trained")]

    def cells(name, row):
        numbers = [cell for field in fields.values() for cell in moments(row, *field)]
        judged = measured["explained_verdicts"][depth][name]
        words = [said(judged[claim], claim) for claim in claims]
        return [name, *numbers, *(words if name != "sigmoid" else [""] * len(claims))]

    rows = [cells(name, row) for name, row in measured["explained"][depth].items()]
    return lines(["", *head, *claims], rows)


def maps_overview(measured):
    """The maps of the trained networks at every depth: of other noise, then of other seeds."""
    explained = measured["explained"]

    def cell(name, depth):
        row = explained[depth].get(name)
        if row is None:
            return "not run" if name in measured["rows"]["tuned"][depth] else "no block"
        if row["test"][0] is None:
            return "at chance"
        nearby = moments(row, "nearby", 2)[1]
        return f"{nearby}; {moments(row, 'noise', 1)[1]}; {moments(row, 'seeds', 2)[1]}"

    rows = [[name, *(cell(name, depth) for depth in explained)] for name in measured["kinds"]]
    return lines(["", *map(named, explained)], rows)


def short(measured):
    """The README's part."""
    fixed, tuned = overview(measured, "fixed"), overview(measured, "tuned")
    told = "test accuracy; updates to 90 % where it got there"
    return "\n".join(
        [
            *holding(measured), "",
            f"**At learning rate {measured['setting']['rate']}** ({told}):", "", *fixed, "",
            f"**Each at its best learning rate** ({told}; rate):", "", *tuned, "",
            "**Saliency maps when trained** (cosine under other noise; ln signal / noise; cosine between seeds):",
            "", *maps_overview(measured),
        ]
    )  # fmt: skip


def long(measured):
    """Everything, for tables.md."""
    out = [
        "# Five remedies: everything measured",
        "",
        "Written by tables.py; what the columns are: README.md.",
        "",
    ]
    for mode in measured["rows"]:
        for depth, table in measured["rows"][mode].items():
            updates = table["sigmoid"]["updates"]
            out += [
                f"## {named(depth)}, {MODES[mode]}, {updates:,} updates",
                "",
                *full(measured, mode, depth),
                "",
            ]
            out += ["Against the sigmoid network:", "", *verdicts(measured, mode, depth), ""]
    for depth in measured["explained"]:
        out += [
            f"## Saliency maps, {named(depth)}, {MODES['tuned']}",
            "",
            *maps(measured, depth),
            "",
        ]
    return "\n".join(out)


def main(source=HERE.parents[1] / "runs" / HERE.name, target=HERE):
    measured = json.loads((Path(source) / "measured.json").read_text())
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(START)
    (Path(target) / "README.md").write_text(
        f"{before}{START}\n\n{short(measured)}\n\n{END}{rest.split(END)[1]}"
    )
    (Path(target) / "tables.md").write_text(long(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
