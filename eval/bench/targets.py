"""What the numbers are compared with: ratios between rows, and the goals that were set for them.  Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

KLS = ("forward_kl", "reverse_kl")
LARGE_VOCABULARY = 2**16
"""From here on a row of logits no longer stays in a core's cache beside its statistics."""
FLAT = 1.1
"""Memory at 4N over that at N, where "the same" has room for what the allocator rounds."""
GIB = 2**30


@dataclass(frozen=True)
class Target:
    """One goal: ``found`` must be at most, or at least, ``limit``; None where it was not measured."""

    what: str
    where: str
    limit: float
    found: float | None
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def as_json(self) -> Row:
        sign = ">=" if self.at_least else "<="
        named = {"what": self.what, "where": self.where, "goal": f"{sign} {self.limit:g}"}
        return named | {"found": self.found, "reached": self.reached}


def evaluate(rows: Sequence[Row]) -> list[Target]:
    """All goals of the cases that ``rows`` hold."""
    found: list[Target] = []
    for rows_of_case in _cases([row for row in rows if row["kind"] == "timing"]):
        first = next(iter(rows_of_case.values()))
        if first["device"] == "cuda":
            found += _gpu(rows_of_case)
        elif first["dtype"] == "float32":
            found += _cpu(rows_of_case)
        if first["dtype"] == "bfloat16" and first["near"] is not None:
            found += _accuracy(rows_of_case)
    return found + _flat(rows)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its time over that of gemm4 and of llmkd, and its memory over that of llmkd."""
    out = []
    for row in rows:
        case = _beside(row, rows)
        ratios = {
            "seconds/gemm4": ratio(row, case.get("gemm4"), "seconds"),
            "seconds/llmkd": ratio(row, case.get("llmkd"), "seconds"),
            "peak/llmkd": ratio(row, case.get("llmkd"), "peak_bytes"),
        }
        out.append(row | {"ratios": ratios} if row["kind"] == "timing" else row)
    return out


def ratio(above: Row | None, below: Row | None, key: str) -> float | None:
    """None where one of the two is missing or was not measured."""
    if above is None or below is None or not above.get(key) or not below.get(key):
        return None
    return above[key] / below[key]


def case_of(row: Row) -> tuple[Any, ...]:
    return (*row["shape"], row["divergence"], row["device"], row["dtype"], row["near"])


def _beside(row: Row, rows: Sequence[Row]) -> dict[str, Row]:
    """The timed rows of the same case, by implementation."""
    same = [r for r in rows if r["kind"] == "timing" and case_of(r) == case_of(row)]
    return {r["implementation"]: r for r in same}


def _cases(rows: Sequence[Row]) -> list[dict[str, Row]]:
    firsts = {case_of(row): row for row in reversed(rows)}
    return [_beside(row, rows) for row in reversed(firsts.values())]


def _where(rows: dict[str, Row]) -> str:
    row = next(iter(rows.values()))
    tokens, vocabulary, student, teacher = row["shape"]
    near = "" if row["near"] is None else f" near={row['near']:g}"
    return f"{row['divergence']} N={tokens} V={vocabulary} Hs={student} Ht={teacher}{near}"


def _cpu(rows: dict[str, Row]) -> list[Target]:
    where, row = _where(rows), next(iter(rows.values()))
    divergence, large = row["divergence"], row["shape"][1] >= LARGE_VOCABULARY
    kl, gemm4, ours = divergence in KLS, rows.get("gemm4"), rows.get("llmkd")

    def faster(peer: str, limit: float) -> Target:
        found = ratio(rows.get(peer), ours, "seconds")
        return Target(f"times as fast as {peer}", where, limit, found, at_least=True)

    def smaller(peer: str, limit: float) -> Target:
        return Target(f"memory over {peer}", where, limit, ratio(ours, rows.get(peer), "peak_bytes"))

    limit = 1.4 if large else 1.15 if kl else 1.2
    targets = [Target("time over gemm4", where, limit, ratio(ours, gemm4, "seconds"))]
    if large:
        found = ratio(rows.get("llmkd_compiled"), gemm4, "seconds")
        targets.append(Target("time over gemm4, compiled", where, 1.3, found))
    if divergence not in (*KLS, "jsd"):
        return targets
    return [
        *targets,
        faster("trl_dense", 1.2 if kl else 3.0),
        faster("liger", 1.2 if kl else 2.5),
        faster("trl_chunked", 2.0),
        smaller("trl_dense", 0.1),
        smaller("liger", 0.4 if kl else 0.25),
    ]


def _gpu(rows: dict[str, Row]) -> list[Target]:
    where, row = _where(rows), next(iter(rows.values()))
    kl, ours = row["divergence"] in KLS, rows.get("llmkd")
    throughput = ratio(rows.get("gemm4"), ours, "seconds")
    targets = [Target("throughput over gemm4", where, 0.8 if kl else 0.75, throughput, at_least=True)]
    if row["divergence"] in (*KLS, "jsd"):
        found = ratio(rows.get("trl_chunked"), ours, "seconds")
        targets.append(Target("times as fast as trl_chunked", where, 1.4 if kl else 1.8, found, at_least=True))
    beyond = None
    if ours is not None and ours.get("peak_bytes"):
        beyond = (ours["peak_bytes"] - 4 * row["shape"][1] * row["shape"][2]) / GIB
    return [*targets, Target("GiB beyond the head gradient", where, 2.5, beyond)]


def _accuracy(rows: dict[str, Row]) -> list[Target]:
    """In bfloat16, with a teacher near the student: rows that were refused for their error count too."""
    where = _where(rows)
    error = {name: _gradient_error(row) for name, row in rows.items()}
    ours = error.get("llmkd")
    targets = [Target("relative error of the gradient", where, 3e-3, ours)]
    if next(iter(rows.values()))["divergence"] not in (*KLS, "jsd"):
        return targets
    for peer in ("liger", "trl_dense"):
        theirs = error.get(peer)
        found = theirs / ours if theirs and ours else None
        targets.append(Target(f"error of {peer} over ours", where, 10, found, at_least=True))
    return targets


def _gradient_error(row: Row) -> float | None:
    errors = row.get("errors")
    return max(errors["hidden"], errors["head"]) if errors else None


def _flat(rows: Sequence[Row]) -> list[Target]:
    """Memory beyond the gradients to hidden states, for the most tokens over that for the fewest."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == "memory" and row.get("beyond_bytes"):
            groups.setdefault((row["implementation"], *case_of(row)[1:]), []).append(row)
    targets = []
    for group in groups.values():
        few, many = (pick(group, key=lambda r: r["shape"][0]) for pick in (min, max))
        if few is not many:
            what = f"memory at N={many['shape'][0]} over that at N={few['shape'][0]}"
            targets.append(Target(what, _where({"": few}), FLAT, ratio(many, few, "beyond_bytes")))
    return targets
