"""Writes the README's tables from what run.py measured: python tables.py [DIR] [README]."""

import itertools
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
START, END = "<!-- tables: written by tables.py -->", "<!-- end of tables -->"
SIGNS = {"holds": "**holds**", "does not": "no", "undecided": "undecided", "none arrives": "none arrives"}


def named(depth):
    return "784-128-10" if depth == "0" else f"depth {depth}"


def number(pair, digits):
    """Mean and standard error."""
    mean, error = pair
    return "infinite" if mean is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def lines(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def steps(row, seeds):
    """Updates to the goal; how many seeds came there, unless all or none did."""
    if not row["reached"]:
        return "never"
    mean = "once" if row["steps"][0] is None else number(row["steps"], 0)
    return mean if row["reached"] == seeds else f"{mean} ({row['reached']} of {seeds})"


def runs(measured, mode, depth):
    """One table: every cure at one depth."""
    seeds, rates = measured["setting"]["seeds"], measured["setting"]["rates"]
    head = ["", *(["rate"] if mode == "tuned" else []), "updates to 90 %", "train", "test", "ln gradient, least layer"]
    head += ["most", "spread"]

    def cells(name, row):
        edge = "*" if row["rate"] in (rates[0], rates[-1]) else ""
        diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
        return [
            name,
            *([f"{row['rate']:g}{edge}"] if mode == "tuned" else []),
            steps(row, seeds),
            number(row["train"], 3),
            number(row["test"], 3) + diverged,
            *(number(row[field], 1) for field in ("low", "high", "spread")),
        ]

    table = measured["rows"][mode][depth]
    return lines(head, [cells(name, row) for name, row in table.items()])


def said(verdict, benefit):
    """A verdict with the benefit that it is about."""
    word, mean, error = verdict
    if mean is None:
        return SIGNS[word]
    factor, unit = {"speeds training": (1.4427, " bits"), "improves accuracy": (100, " pp")}.get(benefit, (1, " nats"))
    digits = 1 if benefit == "improves accuracy" else 2
    return f"{SIGNS[word]}, {mean * factor:+.{digits}f} ± {error * factor:.{digits}f}{unit}"


def verdicts(measured, mode, depth):
    table = {name: row for name, row in measured["verdicts"][mode][depth].items() if name != "sigmoid"}
    claims = next(iter(table.values()))
    rows = [[name, *(said(row[claim], claim) for claim in claims)] for name, row in table.items()]
    return lines(["", *claims], rows)


def where(measured):
    """For every single cure and claim: the places where it holds, is refuted, stays open."""
    table, ends = measured["verdicts"], ("0", str(max(measured["setting"]["tuned"])))
    places = [(mode, depth) for depth in ends for mode in ("fixed", "tuned")]
    singles = [name for name, kind in measured["kinds"].items() if kind not in ("baseline", "pair")]
    claims = list(next(iter(table["fixed"][ends[1]].values())))
    for claim in claims:
        verdict = {}
        for (mode, depth), name in itertools.product(places, singles):
            if name in table[mode][depth]:
                verdict.setdefault(name, {})[mode, depth] = table[mode][depth][name][claim][0]
        yield f"*Each cure {claim}*:"
        for mode, depth in places:
            holds = [name for name in singles if verdict[name].get((mode, depth)) == "holds"]
            label = "the article's rate" if mode == "fixed" else "rates tuned"
            yield f"- {named(depth)}, {label}: " + (", ".join(holds) or "none")
        nowhere = [name for name in singles if set(verdict[name].values()) <= {"does not", "none arrives"}]
        never = [name for name in singles if "holds" not in verdict[name].values() and name not in nowhere]
        yield f"- in none of the four: {', '.join(nowhere) or 'none'}" + (
            f"; nowhere for sure: {', '.join(never)}" if never else ""
        )
        yield ""


def tables(measured):
    """All of it, as Markdown."""
    setting = measured["setting"]
    out = ["### Which claims hold", "", *where(measured)]
    for mode, title in (("fixed", f"Learning rate {setting['rate']}"), ("tuned", "Learning rate tuned")):
        for depth in measured["rows"][mode]:
            updates = next(iter(measured["rows"][mode][depth].values()))["updates"]
            out += [f"### {title}, {named(depth)}, {updates:,} updates", "", *runs(measured, mode, depth), ""]
            out += ["Against the sigmoid network:", "", *verdicts(measured, mode, depth), ""]
    return "\n".join(out)


def written(readme, measured):
    """The README with its tables anew."""
    before, rest = readme.split(START)
    return f"{before}{START}\n\n{tables(measured)}\n{END}{rest.split(END)[1]}"


def main(source=HERE, target=HERE / "README.md"):
    measured = json.loads((Path(source) / "measured.json").read_text())
    Path(target).write_text(written(Path(target).read_text(), measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
