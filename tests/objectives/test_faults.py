"""Bad numbers: what is flagged, which token it names, and what only looks bad."""

import math
import re
from dataclasses import replace

import pytest
import torch

from llmkd.objectives.faults import Faults, TokenFault
from llmkd.types import Head, Logits, Sparse, States

from dense import F64, GRID, HT, Case, V, assert_is_the_reference, case, draws, likeliest, logits_of, randn, run

INF, NAN = math.inf, math.nan


def flags(*places: int, size: int = 6) -> torch.Tensor:
    return torch.isin(torch.arange(size), torch.tensor(places))


def beside_logits(kinds, tokens: int = 7, **settings) -> Case:
    c = case(tokens, kinds=kinds, chunk=3, **settings)
    c.teachers = [logits_of(c.teachers[0])]
    return c


# -- flags ------------------------------------------------------------------------------------------------------------


def test_without_a_flag_nothing_is_raised():
    faults = Faults()
    faults.report()
    faults.add(flags(), "never")
    faults.add(torch.zeros(0, dtype=torch.bool), "no tokens")
    faults.report()


def test_the_first_token_of_the_first_flag_is_named():
    faults = Faults()
    faults.add(flags(), "never")
    faults.add(flags(4, 3), "bad")
    faults.add(flags(0), "worse")
    with pytest.raises(TokenFault, match=r"^token 3: bad$") as caught:
        faults.report()
    assert (caught.value.row, caught.value.what) == (3, "bad")


def test_what_is_said_may_depend_on_the_token():
    faults = Faults()
    faults.add(flags(2, 5), lambda row: f"number {10 * row}")
    with pytest.raises(TokenFault, match=r"^token 2: number 20$"):
        faults.report()


def test_a_fault_is_a_mistake_of_the_user():
    assert issubclass(TokenFault, ValueError)


# -- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [V, V + 3, -1, -100])
@pytest.mark.parametrize("kind", ["cross_entropy", "nkd", "forward_kl"])
def test_a_target_outside_the_vocabulary_is_named_with_its_token(kind, target):
    c = beside_logits([kind])
    c.targets[5] = target
    said = f"token 5: target id {target} is outside the shared vocabulary of {V} rows"
    with pytest.raises(TokenFault, match=f"^{re.escape(said)}"):
        run(c)


def test_a_target_of_a_token_that_is_dropped_may_be_anything():
    c = beside_logits(["cross_entropy"])
    c.targets[5] = -100
    c.terms = [replace(c.terms[0], weight=c.terms[0].weight * ~flags(5, size=7))]
    loss, _, _ = run(c)
    assert loss.isfinite()


# -- teachers that are no distribution --------------------------------------------------------------------------------


def spoilt(row: torch.Tensor, how: str) -> torch.Tensor:
    if how == "all -inf":
        return torch.full_like(row, -INF)
    return row.clone().index_fill_(0, torch.tensor([2]), {"NaN": NAN, "+inf": INF}[how])


@pytest.mark.parametrize("how", ["NaN", "+inf", "all -inf"])
@pytest.mark.parametrize("kind", [kind for kind in dict(GRID) if kind != "cross_entropy"])
def test_a_teacher_that_is_no_distribution_is_named_with_its_token(kind, how):
    c = beside_logits([kind])
    c.teachers[0].logits[4] = spoilt(c.teachers[0].logits[4], how)
    with pytest.raises(TokenFault, match=r"^token 4: the logits of teacher 0 hold NaN, \+inf or no finite number"):
        run(c)


@pytest.mark.parametrize("how", ["NaN", "+inf", "all -inf"])
def test_the_token_is_counted_among_all_even_where_earlier_ones_are_dropped(how):
    c = beside_logits(["forward_kl"], tokens=31)
    c.terms = [replace(c.terms[0], weight=c.terms[0].weight * (torch.arange(31) % 4 == 3))]
    c.teachers[0].logits[19] = spoilt(c.teachers[0].logits[19], how)
    with pytest.raises(TokenFault, match=r"^token 19: the logits of teacher 0") as caught:
        run(c)
    assert caught.value.row == 19


def test_a_teacher_may_say_anything_of_a_token_that_is_dropped():
    c, clean = (beside_logits(["forward_kl", "reverse_kl"]) for _ in range(2))
    for each in (c, clean):
        each.terms = [replace(t, weight=t.weight * ~flags(4, size=7)) for t in each.terms]
    c.teachers[0].logits[4] = NAN
    (loss, gradients, _), (expected_loss, expected, _) = run(c), run(clean)
    assert torch.equal(loss, expected_loss)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


def test_the_teacher_is_named_by_its_place():
    c = beside_logits(["forward_kl", "reverse_kl"])
    second = c.teachers[0].logits.clone()
    second[1, 1] = NAN
    c.teachers.append(Logits(second))
    c.terms = [c.terms[0], replace(c.terms[1], teacher=1)]
    with pytest.raises(TokenFault, match=r"^token 1: the logits of teacher 1"):
        run(c)


def test_hidden_states_of_a_teacher_that_are_not_numbers_are_found_too():
    c = case(chunk=3)
    c.teachers[0].hidden[6, 0] = NAN
    with pytest.raises(TokenFault, match=r"^token 6: the logits of teacher 0"):
        run(c)


# -- values that are infinite -----------------------------------------------------------------------------------------

FINITE = ["forward_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "hellinger", "nkd", "taid"]


@pytest.mark.parametrize("kind", FINITE)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (F64, 1e-11)])
def test_a_single_impossible_token_of_the_teacher_is_fine(kind, dtype, tolerance):
    c = beside_logits([kind])
    c.teachers[0].logits[4, 2] = -INF
    assert_is_the_reference(c.to(dtype), tolerance)


@pytest.mark.parametrize("kind", ["reverse_kl", "adaptive_kl", "balanced_kl"])
def test_a_value_that_is_infinite_names_its_token_and_what_to_take_instead(kind):
    c = beside_logits([kind])
    c.teachers[0].logits[4, 2] = -INF
    with pytest.raises(TokenFault, match=f"^token 4: {kind} is infinite: .* a jsd, .* is finite there$"):
        run(c)


def test_an_impossible_token_of_the_student_that_the_teacher_may_choose_is_infinite_for_forward_kl():
    c = beside_logits(["forward_kl", "jsd"], bias=True)
    c.head.bias[9] = -INF
    with pytest.raises(TokenFault, match=r"^token 0: forward_kl is infinite"):
        run(c)


def test_a_token_that_is_impossible_for_both_is_fine_for_every_term_and_gets_no_gradient():
    kinds = ["forward_kl", "reverse_kl", "jsd", "hellinger", "adaptive_kl", "balanced_kl", "taid", "skew_reverse_kl"]
    c = beside_logits(kinds, bias=True)
    c.targets.fill_(0)
    shorter = replace(c, vocabulary=V - 1, head=Head(c.head.weight.clone(), c.head.bias.clone()))
    c.head.bias[V - 1] = -INF
    c.teachers[0].logits[:, V - 1] = -INF
    (loss, gradients, _), (expected_loss, expected, _) = run(c), run(replace(shorter, hidden=c.hidden.detach().clone()))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients["weight"], expected["weight"], rtol=1e-9, atol=1e-13)
    assert (gradients["weight"][V - 1] == 0).all() and float(gradients["bias"][V - 1]) == 0


def test_a_student_that_is_not_a_number_is_not_laid_at_the_teachers_door():
    c = beside_logits(["forward_kl", "reverse_kl"])
    c.hidden[3, 0] = NAN
    loss, _, values = run(c)
    assert loss.isnan() and values.entropy[3].isnan()


def test_a_sparse_teacher_that_misses_the_students_whole_mass_is_fine_for_jsd():
    c = case(kinds=["jsd"], chunk=3)
    logp = torch.full((7, V), -INF, dtype=F64)
    logp[:, :3] = math.log(1 / 3)
    c.teachers = [likeliest(logp, 3, "ghost", tail=True)]
    loss, gradients, _ = run(c)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients.values())


def test_states_of_a_teacher_in_float16_may_overflow_nothing():
    """Logits of 400 and more, which is far beyond where exp overflows, are a distribution like any other."""
    c = case(kinds=["jsd", "total_variation"], chunk=3).to(torch.float32)
    c.teachers = [States(400 * randn(7, HT, seed=5).float(), Head(randn(V, HT, seed=6).float()))]
    loss, gradients, _ = run(c)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients.values())


# -- sparse teachers ---------------------------------------------------------------------------------------------------


def beside_sparse(reading: str, kind: str = "forward_kl", k: int = 9) -> Case:
    c = beside_logits([kind])
    logp = c.teachers[0].logits.log_softmax(-1)
    c.teachers = [draws(logp, 40, seed=8) if reading == "counts" else likeliest(logp, k, reading)]
    return c


def spoil(how: str, teacher: Sparse, row: int) -> Sparse:
    ids, logp, tail = teacher.ids.clone(), teacher.logp.clone(), teacher.tail
    if how == "twice":
        ids[row, 3] = ids[row, 1]
    elif how == "outside":
        ids[row, 3] = V
    elif how == "negative":
        ids[row, 3] = -1
    elif how == "no number":
        logp[row, 3] = NAN
    elif how == "nothing":
        logp[row] = -INF
    elif how == "too much":
        logp[row] += 1.0
    elif how == "too little":
        logp[row] -= 1.0
    elif how == "too much with the tail":
        tail = torch.full((7,), -20.0, dtype=F64).index_fill_(0, torch.tensor([row]), 0.0)
    return replace(teacher, ids=ids, logp=logp, tail=tail)


FAULTS = {
    "twice": "names a token twice",
    "outside": f"names an id outside the shared vocabulary of {V} rows",
    "negative": f"names an id outside the shared vocabulary of {V} rows",
    "no number": "has no token, or one that is not a number",
    "nothing": "has no token, or one that is not a number",
    "too much": r"probabilities sum to [12]\.\d+, more than 1",
    "too much with the tail": r"probabilities sum to 1\.\d+, more than 1",
}


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("reading", ["topk", "ghost"])
def test_a_signal_that_cannot_be_meant_names_its_token(how, reading):
    c = beside_sparse(reading)
    c.teachers = [spoil(how, c.teachers[0], row=5)]
    with pytest.raises(TokenFault, match=f"^token 5: the sparse teacher('s)? {FAULTS[how]}") as caught:
        run(c)
    assert caught.value.row == 5


def test_shares_of_draws_that_do_not_sum_to_1_name_their_token():
    c = beside_sparse("counts")
    c.teachers = [spoil("too little", c.teachers[0], row=5)]
    with pytest.raises(TokenFault, match=r"^token 5: the shares of the draws sum to 0\.3679, not to 1"):
        run(c)


@pytest.mark.parametrize("how", FAULTS)
def test_the_token_of_a_sparse_teacher_is_counted_among_all_even_where_earlier_ones_are_dropped(how):
    c = beside_sparse("ghost")
    c.terms = [replace(c.terms[0], weight=c.terms[0].weight * (torch.arange(7) > 3))]
    c.teachers = [spoil(how, c.teachers[0], row=5)]
    with pytest.raises(TokenFault, match=r"^token 5: the sparse teacher"):
        run(c)
    c.teachers = [spoil(how, beside_sparse("ghost").teachers[0], row=2)]
    assert run(c)[0].isfinite()


def test_a_mass_above_1_by_rounding_is_no_fault():
    c = beside_sparse("ghost", "jsd", k=V)
    teacher = c.teachers[0]
    c.teachers = [replace(teacher, logp=(teacher.logp + 1e-5).float())]
    assert run(c)[0].isfinite()
