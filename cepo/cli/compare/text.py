"""A comparison on a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cepo.cli.compare.differences import CreditPair, Flip, HeldOut, credit_pair, flips, held_out, shades
from cepo.cli.compare.runs import ComparedRun, differing
from cepo.credit.decisive import visible
from cepo.run.lines import Row

COLOURS = ("#0072b2", "#d55e00", "#00805c", "#9c4f86", "#8a6100")
"""The colour of each run, as in the HTML file; with more runs they repeat."""
CURVES = {"reward/mean": "reward", "accuracy/eval": "held out", "length/mean": "length", "grad_norm": "grad norm"}
"""The curves of the comparison: keys of metrics.jsonl and their names."""
FLIPS = 5
"""The flipped problems that a terminal shows."""
WIDTH = 40
"""Characters of a curve."""
PANEL = 38
"""Characters of a response's panel; two stand side by side on 80 columns."""
FULL_SHADE = 0.3
"""The shade that has the full colour, as on the pages."""
_BARS = "▁▂▃▄▅▆▇█"
_UP, _DOWN = (22, 150, 78), (205, 52, 52)


def show(runs: Sequence[ComparedRun], console: Console) -> None:
    """Prints the comparison of every run with the first."""
    first, others = runs[0], runs[1:]
    console.print(Text.assemble("compared with ", coloured(runs, 0), style="bold"))
    for title, part in (
        ("settings that differ", settings_table(runs)),
        ("held-out accuracy", accuracy_table(runs)),
        ("curves", curves_table(runs)),
    ):
        console.print(Group(Text(f"\n{title}", style="bold"), Padding(part, (0, 0, 0, 2))))
    for at, run in enumerate(others, start=1):
        if flipped := flips(run, first):
            console.print(Group(Text("\nproblems that flipped, ", style="bold") + coloured(runs, at), _flips(flipped)))
        if pair := credit_pair(run, first):
            console.print(Group(Text(f"\ncredit at step {pair.step}", style="bold"), _pair(runs, at, pair)))


def coloured(runs: Sequence[ComparedRun], at: int) -> Text:
    """The name of a run in its colour."""
    return Text(visible(runs[at].name), style=f"bold {COLOURS[at % len(COLOURS)]}")


def settings_table(runs: Sequence[ComparedRun]) -> Table | Text:
    """The keys whose values differ, with the value of each run."""
    rows = differing(runs)
    if not rows:
        return Text("none: the runs have the same configuration", style="dim")
    table = _table("key", *(coloured(runs, at) for at in range(len(runs))))
    for key, values in rows.items():
        table.add_row(Text(key), *(Text(visible(shown(value))) for value in values))
    return table


def accuracy_table(runs: Sequence[ComparedRun]) -> Table:
    """Held-out accuracy before and after, and the difference to the first run."""
    table = _table("run", "before", "after", "difference to the first", "")
    for at, run in enumerate(runs):
        result = held_out(run, runs[0])
        before = run.rows[0].get("accuracy/eval_before") if run.rows else None
        table.add_row(coloured(runs, at), share(before), share(result.accuracy), difference(result), basis(result))
    return table


def share(value: float | None) -> str:
    """Example: share(0.59) == "59.0%"; "-" for None."""
    return "-" if value is None else f"{value:.1%}"


def difference(result: HeldOut) -> str:
    """Example: "+3.1 points [+0.4, +5.9]"."""
    if result.difference is None:
        return "-"
    points = f"{100 * result.difference:+.1f} points"
    if result.low is None or result.high is None:
        return points
    return f"{points} [{100 * result.low:+.1f}, {100 * result.high:+.1f}]"


def basis(result: HeldOut) -> str:
    """What a difference rests on."""
    if result.difference is None:
        return ""
    if not result.problems:
        return "no interval: the runs share no held-out groups"
    sign = "" if result.low is None or result.high is None or result.low > 0 or result.high < 0 else ", may be chance"
    return f"paired over {result.problems} problems{sign}"


def curves_table(runs: Sequence[ComparedRun]) -> Table:
    """A line of bars for each run and metric, on one scale for all runs."""
    table = _table("", "", "first", "", "last")
    for key, name in CURVES.items():
        series = [[float(row[key]) for row in run.rows if row.get(key) is not None] for run in runs]
        values = [value for each in series for value in each]
        for at, each in enumerate(series):
            if each:
                bars = Text(spark(each, min(values), max(values)), style=COLOURS[at % len(COLOURS)])
                table.add_row(name, coloured(runs, at), f"{each[0]:.3g}", bars, f"{each[-1]:.3g}")
    return table


def spark(values: Sequence[float], low: float, high: float) -> str:
    """Values as bars. Example: spark([0, 1, 2], 0, 2) is a low, a middle and a full bar."""
    if len(values) > WIDTH:
        values = [values[at * len(values) // WIDTH] for at in range(WIDTH - 1)] + [values[-1]]
    reach = high - low or 1.0
    return "".join(_BARS[round((value - low) / reach * (len(_BARS) - 1))] for value in values)


def shown(value: Any) -> str:
    """A value of a run file as TOML writes it; a key that a run does not have is "-"."""
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


def _flips(flipped: Sequence[Flip]) -> Padding:
    table = _table("", "problem", "answer", "first", "this run")
    for flip in flipped[:FLIPS]:
        mark = Text("solved", style="green") if flip.gained else Text("lost", style="red")
        question = visible(flip.question.strip().split("\n")[0])[:60]
        table.add_row(mark, Text(question), Text(visible(flip.answer)), *(_answer(each) for each in flip.samples))
    gained = sum(flip.gained for flip in flipped)
    total = Text(f"{gained} solved, {len(flipped) - gained} lost", style="dim")
    return Padding(Group(table, total), (0, 0, 0, 2))


def _answer(sample: Row) -> Text:
    right = sample.get("outcome") == "correct"
    read = str(sample.get("extracted") or sample.get("outcome") or "")
    return Text(visible(read), style="green" if right else "red")


def _pair(runs: Sequence[ComparedRun], at: int, pair: CreditPair) -> Padding:
    texts = [
        Panel(_credit(sample), title=coloured(runs, number), title_align="left", width=PANEL)
        for number, sample in zip((0, at), pair.samples, strict=True)
    ]
    question = Text(visible(pair.question.strip().split("\n")[0]) + f"  answer {visible(pair.answer)}")
    return Padding(Group(question, Columns(texts)), (0, 0, 0, 2))


def _credit(sample: Row) -> Text:
    text = Text()
    tokens = sample.get("tokens") or [sample["text"]]
    for token, shade in zip(tokens, shades(sample) or [0.0] * len(tokens), strict=False):
        strength = min(1.0, abs(shade) / FULL_SHADE)
        red, green, blue = (round(0.25 * part + 0.75 * strength * part) for part in (_UP if shade > 0 else _DOWN))
        style = Style(color="#ffffff", bgcolor=f"#{red:02x}{green:02x}{blue:02x}") if strength > 0.1 else Style()
        text.append(visible(token), style=style)
    return text


def _table(*columns: str | Text) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
