"""The part of PromQL that deploy/prometheus/alerts.yml and the dashboard use, over expositions that were scraped.

`increase` and `rate` do not extrapolate to the edges of their range, as Prometheus does: below one scrape interval that
makes no difference to a condition. Language: https://prometheus.io/docs/prometheus/latest/querying/
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Value = Vector | float
Expression = Callable[["Scrapes", float], Value]
UNITS = {"s": 1, "m": 60, "h": 3600}
TOKEN = re.compile(r'\s*("[^"]*"|\d+(?:\.\d+)?[smh](?!\w)|\d+(?:\.\d+)?|\w+|[=!]~|[=!<>]=|[-+*/<>=(){}\[\],])')
COMPARISONS = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
FOLDS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max}
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass
class Scrapes:
    """Scraped samples by time; a series that the newest scrape lacks has ended."""

    samples: list[tuple[float, dict[Labels, float]]] = field(default_factory=list)

    def add(self, at: float, texts: Mapping[str, str | None], *, job: str = "cepo") -> None:
        """One scrape of every service by its name; None for one that did not answer."""
        found: dict[Labels, float] = {}
        for service, text in texts.items():
            target = {"job": job, "service": service}
            found[_labels({"__name__": "up", **target})] = float(text is not None)
            for family in text_string_to_metric_families(text or ""):
                for sample in family.samples:
                    found[_labels({**target, **sample.labels, "__name__": sample.name})] = sample.value
        self.samples.append((at, found))

    def repeat(self, at: float) -> None:
        """The newest scrape once more."""
        self.samples.append((at, self.samples[-1][1]))


@dataclass(frozen=True)
class Selector:
    """A metric by name and matchers; a range of it has seconds."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    seconds: float = 0.0

    def matches(self, series: Labels) -> bool:
        labels = dict(series)
        return labels["__name__"] == self.name and all(
            self._fits(labels.get(k, ""), op, v) for k, op, v in self.matchers
        )

    def __call__(self, scrapes: Scrapes, now: float) -> Vector:
        newest = [found for at, found in scrapes.samples if at <= now][-1]
        return {_nameless(series): value for series, value in newest.items() if self.matches(series)}

    def history(self, scrapes: Scrapes, now: float) -> dict[Labels, list[float]]:
        """The values in the range, by series."""
        values: dict[Labels, list[float]] = {}
        for at, found in scrapes.samples:
            if now - self.seconds < at <= now:
                for series in filter(self.matches, found):
                    values.setdefault(_nameless(series), []).append(found[series])
        return values

    @staticmethod
    def _fits(value: str, op: str, wanted: str) -> bool:
        equal = value == wanted if op in ("=", "!=") else re.fullmatch(wanted, value) is not None
        return equal != op.startswith("!")


class Query:
    """A parsed expression and the selectors in it."""

    def __init__(self, text: str) -> None:
        """Parses.

        Raises:
            AssertionError: the expression is outside the part that is known here.
        """
        self.selectors: list[Selector] = []
        self._tokens = TOKEN.findall(text)
        assert "".join(self._tokens) == re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", text), text
        self._expression = self._union()
        assert not self._tokens, f"{text}: left over {self._tokens}"

    def __call__(self, scrapes: Scrapes, now: float) -> Value:
        return self._expression(scrapes, now)

    def _next(self, *wanted: str) -> str:
        if self._tokens and (not wanted or self._tokens[0] in wanted):
            return self._tokens.pop(0)
        return ""

    def _expect(self, wanted: str) -> None:
        assert self._next(wanted), f"{wanted} expected before {self._tokens}"

    def _union(self) -> Expression:
        parts = [self._comparison()]
        while self._next("or"):
            parts.append(self._comparison())
        return parts[0] if len(parts) == 1 else lambda s, now: _united([part(s, now) for part in parts])

    def _comparison(self) -> Expression:
        left = self._sum()
        sign = self._next(*COMPARISONS)
        return _binary(COMPARISONS[sign], left, self._sum(), keep=True) if sign else left

    def _sum(self) -> Expression:
        left = self._product()
        while sign := self._next("+", "-"):
            left = _binary(ARITHMETIC[sign], left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._atom()
        while sign := self._next("*", "/"):
            left = _binary(ARITHMETIC[sign], left, self._atom())
        return left

    def _atom(self) -> Expression:
        token = self._next()
        if token == "(":
            inner = self._union()
            self._expect(")")
            return inner
        if token[0].isdigit():
            return lambda s, now: float(token)
        if token in ("sum", "max"):
            return self._aggregation(token)
        if self._next("("):
            return self._call(token)
        return self._selector(token)

    def _aggregation(self, name: str) -> Expression:
        by: list[str] = []
        if self._next("by"):
            self._expect("(")
            while not self._next(")"):
                by.append(self._next())
                self._next(",")
        self._expect("(")
        inner, fold = self._union(), FOLDS[name]
        self._expect(")")

        def aggregated(scrapes: Scrapes, now: float) -> Vector:
            parts: dict[Labels, list[float]] = {}
            for series, value in _vector(inner(scrapes, now)).items():
                parts.setdefault(_labels({k: v for k, v in series if k in by}), []).append(value)
            return {series: fold(values) for series, values in parts.items()}

        return aggregated

    def _call(self, name: str) -> Expression:
        arguments = []
        while not self._next(")"):
            arguments.append(self._union())
            self._next(",")
        if name == "time":
            return lambda s, now: now
        inner = arguments[-1]
        if name == "scalar":
            return lambda s, now: next(iter(_vector(inner(s, now)).values()), float("nan"))
        if name == "absent":
            assert isinstance(inner, Selector)
            known = _labels({key: value for key, op, value in inner.matchers if op == "="})
            return lambda s, now: {} if inner(s, now) else {known: 1.0}
        if name in ("increase", "rate"):
            assert isinstance(inner, Selector)
            share = inner.seconds if name == "rate" else 1.0
            return lambda s, now: {k: _grown(v) / share for k, v in inner.history(s, now).items() if len(v) > 1}
        assert name == "histogram_quantile", name
        return inner  # its buckets: that there are some is what a test asks

    def _selector(self, name: str) -> Expression:
        matchers = []
        if self._next("{"):
            while not self._next("}"):
                key, op, value = self._next(), self._next(), self._next()
                matchers.append((key, op, value.strip('"')))
                self._next(",")
        seconds = 0.0
        if self._next("["):
            span = self._next()
            seconds = float(span[:-1]) * UNITS[span[-1]]
            self._expect("]")
        selector = Selector(name, tuple(matchers), seconds)
        self.selectors.append(selector)
        return selector


def _binary(
    function: Callable[[float, float], float], left: Expression, right: Expression, *, keep: bool = False
) -> Expression:
    """An operation between vectors with the same labels, or with a number; a comparison keeps the left values."""

    def value(a: float, b: float) -> float | None:
        found = function(a, b) if keep or b or function is not operator.truediv else float("nan")
        return (a if found else None) if keep else found

    def combined(scrapes: Scrapes, now: float) -> Value:
        a, b = left(scrapes, now), right(scrapes, now)
        if isinstance(a, float) and isinstance(b, float):
            return function(a, b)
        series = a if isinstance(a, dict) else _vector(b)
        pairs = {
            key: value(a if isinstance(a, float) else a[key], b if isinstance(b, float) else b[key])
            for key in series
            if (isinstance(a, float) or key in a) and (isinstance(b, float) or key in b)
        }
        return {key: found for key, found in pairs.items() if found is not None}

    return combined


def _grown(values: list[float]) -> float:
    """The increase of a counter, which restarts at 0 with its process."""
    return sum(b - a if b >= a else b for a, b in pairwise(values))


def _united(parts: list[Value]) -> Vector:
    united: Vector = {}
    for part in parts:
        united = _vector(part) | united
    return united


def _vector(value: Value) -> Vector:
    assert isinstance(value, dict), "a vector is needed here"
    return value


def _labels(labels: Mapping[str, str]) -> Labels:
    return frozenset(labels.items())


def _nameless(series: Labels) -> Labels:
    return _labels({key: value for key, value in series if key != "__name__"})
