"""Laws of the formulas: values, gradients, ranges and identities of ``objectives.divergences`` and ``.closed``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.law import F64, Case, Finding, Law, Setting, at_most, is_so, near, normals, same
from llmkd.checks.oracle import Point, finite_differences, settings_of
from llmkd.objectives.closed import CLOSED
from llmkd.objectives.distribution import distribution
from llmkd.objectives.divergences import VALUES
from llmkd.terms import TERMS, settled

GROUP = "formulas"
SHAPES = ((1, 2), (3, 3), (2, 5), (4, 11), (3, 300))
"""Tokens and vocabularies, small first; a square one, in which a wrong axis has the right shape."""
KINK = 1e-3
"""Log-probabilities nearer than this are not differentiated: total variation has a kink where they are equal."""


def laws(setting: Setting) -> list[Law]:
    """The laws of every term of the table."""
    found = []
    for kind, row in TERMS.items():
        known = kind in oracle.FORMULAS and kind in VALUES and row.range in oracle.BOUNDS
        found.append(Law("has an independent formula", GROUP, kind, [{}], lambda kind=kind: _is_known(kind)))
        if known:
            found += _of_term(setting, kind)
    return found


def _of_term(setting: Setting, kind: str) -> list[Law]:
    trial = Trial(setting, kind)
    plain = trial.cases(SHAPES, spreads=(1.0, 4.0, 0.1))
    small = trial.cases(SHAPES[:4], spreads=(1.0, 3.0), dtypes=[F64])
    wide = trial.cases(SHAPES, spreads=(1e-4, 1.0, 30.0))
    found = [
        ("equals its formula", plain, trial.equals_formula),
        ("left-out knobs are the declared defaults", [{"tokens": 3, "vocabulary": 5, "seed": setting.seed}],
         trial.defaults),
        ("never negative", wide, trial.never_negative),
        ("stays below its upper bound", wide, trial.below_bound),
        ("gradient equals finite differences", small, trial.gradient),
    ]  # fmt: skip
    if kind in CLOSED:
        found.append(("closed gradient equals finite differences", small, trial.closed_gradient))
    if TERMS[kind].divergence:  # type: ignore[index]
        at_rest = trial.cases(SHAPES, spreads=(1.0, 4.0))
        found.append(("zero at equality", at_rest, trial.zero_at_equality))
        found.append(("zero gradient at equality", at_rest, trial.zero_gradient))
    else:
        found.append(("is not zero at equality, as declared", trial.cases(SHAPES[2:3], spreads=(1.0,)), trial.loss))
    if kind not in ("squared_logit", "cross_entropy"):
        some = trial.cases(SHAPES[1:4], spreads=(1.0,))
        found.append(("a token impossible for both changes nothing", some, trial.impossible_for_both))
        found.append(("impossible tokens are infinite exactly where the formula is", some, trial.impossible_for_one))
        found.append(("a finite value has a finite gradient", some, trial.finite_gradient))
    if kind in ("forward_kl", "reverse_kl"):
        found.append(("at least twice total variation squared (Pinsker)", wide, trial.pinsker))
    return [Law(name, GROUP, kind, cases, holds) for name, cases, holds in found]


def _is_known(kind: str) -> Finding:
    row = TERMS[kind]  # type: ignore[index]
    missing = [what for what, there in (
        ("a formula in llmkd.objectives.divergences.VALUES", kind in VALUES),
        ("a formula in llmkd.checks.oracle.FORMULAS", kind in oracle.FORMULAS),
        (f"a number for the range {row.range} in llmkd.checks.oracle.BOUNDS", row.range in oracle.BOUNDS),
    ) if not there]  # fmt: skip
    return is_so(not missing, f"no {' and no '.join(missing)}", "all of them", "the table of terms")


class Trial:
    """The laws of one term.  Case keywords: tokens, vocabulary, spread (of the logits), knobs, dtype, seed."""

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind

    def cases(self, shapes: Any, spreads: Any, dtypes: list[torch.dtype] | None = None) -> list[Case]:
        return [
            {"tokens": n, "vocabulary": v, "spread": spread, "knobs": knobs, "dtype": dtype, "seed": self.setting.seed}
            for n, v in shapes
            for spread in spreads
            for knobs in settings_of(self.kind)
            for dtype in dtypes or self.setting.precisions()
            if spread < 10 or not _blows_up(knobs)
        ]

    # -- values -------------------------------------------------------------------------------------------------------

    def equals_formula(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> Finding:
        y, x, target = self._logits(**case)
        expected = oracle.value(self.kind, Point.of_logits(y, x, target), knobs)
        return same(self._value(y, x, target, knobs, dtype), expected, _rounding(dtype), "value")

    def defaults(self, tokens: int, vocabulary: int, seed: int) -> Finding:
        y, x, target = self._logits(tokens, vocabulary, 1.0, seed)
        if any(knob.default is None for knob in TERMS[self.kind].knobs.values()):  # type: ignore[index]
            try:
                settled(self.kind, {})
            except ValueError:
                return is_so(True, "refused", "refused", "a knob that must be given")
            return is_so(False, "accepted", "refused", "a knob that must be given")
        knobs = settings_of(self.kind)[0] if self.kind == "mixture" else {}
        expected = oracle.value(self.kind, Point.of_logits(y, x, target), knobs)
        return same(self._value(y, x, target, knobs, F64), expected, _rounding(F64), "value")

    def never_negative(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> Finding:
        y, x, target = self._logits(**case, near=case["spread"] < 1e-2)
        return at_most(-self._value(y, x, target, knobs, dtype), 0.0, _rounding(dtype), "minus the value")

    def below_bound(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> list[Finding]:
        y, x, target = self._logits(**case, near=case["spread"] < 1e-2)
        bound = oracle.upper_bound(self.kind, knobs)
        found = [at_most(self._value(y, x, target, knobs, dtype), bound, _rounding(dtype), "value")]
        if bound < math.inf:
            y, x = _disjoint(y, x)
            found.append(at_most(self._value(y, x, target, knobs, dtype), bound, _rounding(dtype), "disjoint value"))
        return found

    def pinsker(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> Finding:
        y, x, target = self._logits(**case, near=case["spread"] < 1e-2)
        distance = oracle.value("total_variation", Point.of_logits(y, x), {})
        missing = 2 * distance.square() - self._value(y, x, target, knobs, dtype)
        return at_most(missing, 0.0, _rounding(dtype), "2 tv^2 - value")

    # -- equality ------------------------------------------------------------------------------------------------------

    def zero_at_equality(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> Finding:
        y, _, target = self._logits(**case)
        found = self._value(y, y.clone(), target, knobs, dtype)
        return same(found, torch.zeros_like(found), _rounding(dtype) / 10, "value")

    def zero_gradient(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> list[Finding]:
        y, _, target = self._logits(**case)
        found = {"gradient": self._gradient(y, y.clone(), target, knobs, dtype)}
        if self.kind in CLOSED:
            found["closed gradient"] = self._closed(y, y.clone(), knobs, dtype)[1]
        size = 1.0  # of what cancels
        if _blows_up(knobs):
            size = max(1.0, float((y.log_softmax(-1) * (knobs["alpha"] + knobs["beta"])).max().exp()))
        return [same(g, torch.zeros_like(g), size * _rounding(dtype) / 10, name) for name, g in found.items()]

    def loss(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> Finding:
        y, _, target = self._logits(**case)
        x = y + 1.0  # the same distribution
        found = float(self._value(y, x, target, knobs, dtype).abs().max())
        return is_so(found > 1e-3, f"{found:.3g}", "above 0", "value where student and teacher are the same")

    # -- gradients -----------------------------------------------------------------------------------------------------

    def gradient(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> Finding:
        y, x, target = self._logits(**case, apart=True)
        expected = self._differences(y, x, target, knobs)
        return near(self._gradient(y, x, target, knobs, dtype), expected, 1e-7, "gradient to the student's logits")

    def closed_gradient(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> list[Finding]:
        y, x, target = self._logits(**case, apart=True)
        value, dz = self._closed(y, x, knobs, dtype)
        expected = oracle.value(self.kind, Point.of_logits(y, x, target), knobs)
        return [
            same(value, expected, _rounding(dtype), "value of the closed form"),
            near(dz, self._differences(y, x, target, knobs), 1e-7, "closed gradient to the student's logits"),
        ]

    # -- impossible tokens ---------------------------------------------------------------------------------------------

    def impossible_for_both(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> list[Finding]:
        y, x, target = self._logits(**case)
        wide_y, wide_x = (torch.cat([z, z.new_full((z.shape[0], 2), -math.inf)], -1) for z in (y, x))
        found = self._gradient(wide_y, wide_x, target, knobs, dtype)
        plain = self._gradient(y, x, target, knobs, dtype)
        values = [self._value(*z, target, knobs, dtype) for z in ((wide_y, wide_x), (y, x))]
        return [
            same(*values, _rounding(dtype), "value"),
            same(found[:, : plain.shape[1]], plain, _rounding(dtype), "gradient"),
            same(found[:, plain.shape[1] :], torch.zeros_like(found[:, plain.shape[1] :]), 0.0, "its own gradient"),
        ]

    def impossible_for_one(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> list[Finding]:
        found = []
        for what, y, x, target in self._with_holes(**case):
            expected = oracle.value(self.kind, Point.of_logits(y, x, target), knobs)
            declared = ~expected.isnan()  # inf - inf: the formula says nothing
            value = self._value(y, x, target, knobs, dtype)
            found.append(same(value[declared], expected[declared], _rounding(dtype), f"value, {what}"))
        return found

    def finite_gradient(self, knobs: Mapping[str, Any], dtype: torch.dtype, **case: Any) -> list[Finding]:
        """A part that is left out, because its weight is 0 or its token impossible, is left out of the gradient too.
        Beside a student who is surer than the teacher, and one who is less sure."""
        found = []
        for what, y, x, target in self._with_holes(**case):
            for sharpness in (0.2, 1.0, 5.0):
                value = self._value(y, sharpness * x, target, knobs, dtype)
                gradient = self._gradient(y, sharpness * x, target, knobs, dtype)[value.isfinite()]
                odd = (~gradient.isfinite()).sum().to(F64)
                found.append(same(odd, torch.zeros_like(odd), 0.0, f"entries that are no number, {what}"))
        return found

    def _with_holes(self, **case: Any) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """A token that only the student may choose, then one that only the teacher may, then both."""
        y, x, target = self._logits(**case)
        target = torch.full_like(target, y.shape[1] - 1)
        for holes in ({"teacher": 0}, {"student": 1}, {"teacher": 0, "student": 1}):
            pair = {"teacher": y.clone(), "student": x.clone()}
            for side, column in holes.items():
                pair[side][:, column] = -math.inf
            yield f"a probability 0 for {' and '.join(holes)}", pair["teacher"], pair["student"], target

    # -- the code under test -------------------------------------------------------------------------------------------

    def _logits(
        self, tokens: int, vocabulary: int, spread: float, seed: int, near: bool = False, apart: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the teacher and the student and a target each; near: of distributions that hardly differ; apart:
        of such as have no two equal probabilities."""
        while True:
            y = normals(tokens, vocabulary, seed=seed, spread=1.0 if near else spread)
            x = normals(tokens, vocabulary, seed=seed + 1, spread=spread) + (y if near else 0.0)
            gap = (y.log_softmax(-1) - x.log_softmax(-1)).abs().min()
            if not apart or float(gap) > KINK:
                break
            seed += 2
        target = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed + 2))
        return y.to(self.setting.device), x.to(self.setting.device), target.to(self.setting.device)

    def _inputs(self, y: Tensor, x: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What ``VALUES`` takes of this term."""
        if self.kind == "cross_entropy":
            return x.log_softmax(-1).to(dtype), target
        if self.kind == "squared_logit":
            return y.to(dtype), x.to(dtype)
        pair = y.log_softmax(-1).to(dtype), x.log_softmax(-1).to(dtype)
        return (*pair, target) if self.kind == "nkd" else pair

    def _value(self, y: Tensor, x: Tensor, target: Tensor, knobs: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
        return VALUES[self.kind](*self._inputs(y, x, target, dtype), **knobs)

    def _gradient(self, y: Tensor, x: Tensor, target: Tensor, knobs: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
        """To the student's logits, by autograd."""
        leaf = x.to(dtype).requires_grad_()
        inputs = self._inputs(y.to(dtype), leaf, target, dtype)
        (found,) = torch.autograd.grad(VALUES[self.kind](*inputs, **knobs).sum(), leaf)
        return found

    def _closed(self, y: Tensor, x: Tensor, knobs: Mapping[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        teacher, student = (distribution(z.log_softmax(-1).to(dtype)) for z in (y, x))
        return CLOSED[self.kind](teacher, student, **knobs)

    def _differences(self, y: Tensor, x: Tensor, target: Tensor, knobs: Mapping[str, Any]) -> Tensor:
        """The gradient, by finite differences of the independent formula."""

        def formula(moved: Tensor) -> Tensor:
            teacher, held = (z.expand_as(moved) for z in (y, x))
            return oracle.value(
                self.kind, Point.of_logits(teacher, moved, target.expand(moved.shape[:-1]), held), knobs
            )

        return finite_differences(formula, x)


def _rounding(dtype: torch.dtype) -> float:
    return 1e-10 if dtype == F64 else 1e-4


def _blows_up(knobs: Mapping[str, Any]) -> bool:
    """Whether a term takes powers below 0 of probabilities, which float32 cannot hold where they are tiny."""
    return "beta" in knobs and "alpha" in knobs and min(knobs["alpha"], knobs["beta"]) < 0


def _disjoint(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher on the first half of the tokens, the student on the second."""
    first = torch.arange(y.shape[-1], device=y.device) < y.shape[-1] // 2
    return y.masked_fill(~first, -math.inf), x.masked_fill(first, -math.inf)
