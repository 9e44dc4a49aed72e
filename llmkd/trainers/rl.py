"""Reinforcement learning from verifiable rewards, with teachers in the same loss.

A thin subclass of ``trl.GRPOTrainer``, whose own loss is one term, ``grpo``, untouched: with no other term at a step
this trainer *is* TRL's.  The others hear a teacher on the same rollouts:

    k2, k3       on sampled tokens: the teacher is asked once a rollout, the student's log-probabilities are those of
                 the policy's own forward
    k1_reward    the same log-ratio, added to the advantages of the rewards, through TRL's ratio and clipping
    exact, topk  by the engine on all of the vocabulary, from the hidden states of that same forward

All are divided as the policy's loss is (``objectives.normalisers``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import GRPOTrainer

from llmkd.backbone import head_module, head_of, through
from llmkd.trainers import rollout_files
from llmkd.trainers.callbacks import Unlogged, seconds_of
from llmkd.trainers.checkpoints import read_mark, save_checkpoint
from llmkd.trainers.hearing import Rollouts, ask, counted_in, is_heard
from llmkd.trainers.held_out import HeldOut, evaluate
from llmkd.trainers.normalisers import OVER_STEP, token_weights
from llmkd.trainers.objective_loss import unlogged
from llmkd.trainers.optimizers import muon_adamw_where_asked
from llmkd.trainers.policy_terms import SAMPLED, WHOLE, Formulas, PolicyTerm, TeacherTerm, advantages_of, at
from llmkd.trainers.rollouts import (
    EndsSeen,
    as_batch,
    kept_samples,
    moved,
    pass_rates,
    weighed,
    without_contrast,
)
from llmkd.trainers.seen import Seen
from llmkd.trainers.tallies import Tallies
from llmkd.trl_compat import whole_for_generation
from llmkd.types import Loss, Sparse, Teacher

ENTROPY_CONTROL = ("entropy_coef", "_last_world_entropy")
"""What TRL's adaptive entropy bonus has learnt; its own file of them is written where ours is not."""


class RLTrainer(GRPOTrainer):
    """policy: TRL's loss or another, or none; terms: those that hear a teacher; whole: for each term of an estimator in
    ``WHOLE`` the objective with that one term; formulas: the mathematics of the others; correct: which reward says
    whether a completion is right; ends: by which tokens each teacher ends a turn; vocabulary and tau: as the objective
    has them.  The rest goes to TRL."""

    _tag_names: ClassVar[list[str]] = ["trl", "llmkd"]
    _name = "llmkd"

    def __init__(
        self,
        *,
        policy: PolicyTerm | None,
        terms: Sequence[TeacherTerm],
        whole: Mapping[str, Loss],
        formulas: Formulas,
        teachers: Mapping[str, Teacher],
        ends: Mapping[str, Sequence[int]],
        correct: int | None,
        vocabulary: int,
        tau_teacher: float,
        domains: Sequence[str],
        order: Callable[[int], Sampler],
        held_out: Sequence[HeldOut] = (),
        yardstick: Loss,
        **trl: Any,
    ) -> None:
        args = trl["args"]
        args.remove_unused_columns = False
        self.order = order  # TRL asks for the sampler before it returns
        super().__init__(eval_dataset={h.domain: h.rows for h in held_out} or None, **trl)
        self.policy, self.terms, self.whole_terms, self.formulas = policy, list(terms), whole, formulas
        self.teachers, self.ends, self.correct = teachers, ends, correct
        self.vocabulary, self.tau_teacher = vocabulary, tau_teacher
        self.held_out, self.yardstick = list(held_out), yardstick
        self.measured = Tallies(domains)
        self.tokens_seen = torch.zeros((), dtype=torch.int64, device=args.device)
        self.completions_seen = 0
        self.ends_seen = EndsSeen()
        self._graded: Tensor | None = None
        self._seen: Seen | None = None

    # -- data ---------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """One pass that holds every draw of the run: resuming skips what was drawn, whatever the epoch."""
        rounds = -(-self.args.max_steps * self.args.gradient_accumulation_steps // self._steps_per_rollout)
        return self.order(rounds * (self.args.generation_batch_size // self.num_generations))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """None where the training is over before the step, resumed from the checkpoint of an early stop."""
        if self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    @property
    def _steps_per_rollout(self) -> int:
        """Micro-batches that one generation serves."""
        return int(self.args.steps_per_generation * self.num_iterations)

    def whole(self) -> AbstractContextManager[nn.Module]:
        """The student with its parameters gathered, ready for ``generate``."""
        return whole_for_generation(self.model_wrapped, self.accelerator)

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        if self.correct is not None:
            graded = rewards[:, self.correct]
            self._graded = torch.where(graded.isnan(), graded, (graded >= 1.0).to(graded.dtype))
        failed = rewards.isnan()
        for name, count in zip(self.reward_func_names, failed.sum(0).tolist(), strict=True):
            self._metrics["train"][f"rewards/{name}/masked"].append(float(count))
        summed = self.reward_weights.to(failed.device) != 0  # without one of these it would be another sum
        rewards = rewards.masked_fill((failed & summed).any(1, keepdim=True), torch.nan)
        if self.policy is not None:
            read = self._graded if self.policy.kind == "nft" else weighed(rewards, self.reward_weights)
            silent = without_contrast(read, self.num_generations).float().mean().item()
            self._metrics["train"][f"{self.policy.name}/without_contrast"].append(silent)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Rollouts:
        """TRL's rollouts, with ``heard@TEACHER`` and what the teacher says, and ``kept@TERM`` for every term."""
        out: Rollouts = super()._generate_and_score_completions(inputs)
        self.ends_seen.look(self)
        device = self.accelerator.device
        out["domain_ids"] = torch.tensor([row.get("domain_id", 0) for row in inputs], device=device)
        self.tokens_seen += out["num_items_in_batch"].to(torch.int64)
        self.completions_seen += len(inputs) * self.accelerator.num_processes
        self._mask_samples(out)
        with torch.no_grad():
            for name in sorted({term.teacher for term in self.terms if is_heard(self, term)}):
                ask(self, name, out)
            for term in self.terms:
                if term.normalize == "kept":
                    out[f"scale@{term.name}"] = self._scale_of_kept(term, out)
                if term.estimator == "k1_reward" and is_heard(self, term):
                    out[f"shaped@{term.name}"] = self._shaped(term, out)
        return out

    def _mask_samples(self, out: Rollouts) -> None:
        """``kept@TERM [B]`` of this rank, and the policy's mask upon the advantages."""
        rows = out["completion_ids"].shape[0]
        mine = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        graded = self._graded
        everything = torch.ones(rows, dtype=torch.bool, device=out["completion_ids"].device)
        for term in [*self.terms, *([self.policy] if self.policy else [])]:
            kept = everything
            if term.mask is not None:
                assert graded is not None, "a masked term needs a reward that is marked correct"
                kept = kept_samples(term.mask, graded, self.num_generations)[mine]
                shares = self.accelerator.gather(kept.float()).mean().item()
                self._metrics["train"][f"{term.name}/kept"].append(shares)
            out[f"kept@{term.name}"] = kept
        if self.policy is not None and self.policy.mask is not None:
            out["advantages"] = out["advantages"] * out[f"kept@{self.policy.name}"]
        if self.policy is not None and self.policy.kind == "nft":
            assert graded is not None, "nft needs a reward that is marked correct"
            out["graded"] = graded[mine]
            out["pass_rate"] = pass_rates(graded, self.num_generations)[mine]

    def _looked_at(self, term: TeacherTerm, rollouts: Rollouts) -> Tensor:
        """Boolean ``[B, C]``: the tokens that a term looks at."""
        return rollouts[f"heard@{term.teacher}"] & rollouts[f"kept@{term.name}"].unsqueeze(1)

    def _scale_of_kept(self, term: TeacherTerm, out: Rollouts) -> Tensor:
        """All tokens over those that a term keeps, over the ranks and the whole rollout; 0 where it keeps none."""
        if f"heard@{term.teacher}" not in out:
            return torch.zeros((), device=self.accelerator.device)
        counts = torch.stack([counted_in(out).sum().float(), self._looked_at(term, out).sum().float()])
        total, kept = self.accelerator.reduce(counts, reduction="sum")
        return torch.where(kept > 0, total / kept.clamp(min=1), 0.0)

    def _shaped(self, term: TeacherTerm, out: Rollouts) -> Tensor:
        """``log p - log q [B, C]`` of the tokens that the term looks at, 0 elsewhere: an advantage."""
        logq = out.get("old_per_token_logps")
        if logq is None:
            ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
            attention = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
            width, size = out["completion_ids"].shape[1], self.args.per_device_train_batch_size
            logq = self._get_per_token_logps_and_entropies(self.model, ids, attention, width, batch_size=size)[0]
        logp, looked_at = out[f"logp@{term.teacher}"], self._looked_at(term, out)
        self._note(term, self.formulas.estimators["k3"](logp, logq), looked_at, out, "reverse_kl")
        gap = torch.where(looked_at, self.formulas.advantage(logp, logq), 0.0)
        return gap * out.get(f"scale@{term.name}", 1.0)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """TRL's, of which the one with gradients is kept: no second forward of the student is needed."""
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._seen is not None and torch.is_grad_enabled():
            self._seen.logq = found[0]
        return found

    def _compute_loss(self, model: nn.Module, inputs: Rollouts) -> Tensor:
        step = self.state.global_step
        heard = [t for t in self.terms if at(t.weight, step) != 0]
        share = at(self.policy.weight, step) if self.policy is not None else 0.0
        if not heard and self.policy is not None and self.policy.kind == "grpo" and share == 1.0:
            return super()._compute_loss(model, inputs)
        terms = [t for t in heard if t.estimator != "k1_reward"]
        student = self.accelerator.unwrap_model(model)
        self._seen = Seen()
        try:
            wants_hidden = any(term.estimator in WHOLE for term in terms)
            with self._seen.watching(student) if wants_hidden else nullcontext():
                loss = self._trls_loss(model, inputs, advantages_of(self.policy, heard, inputs, step))
            weights = self._token_weights(inputs)
            if self.policy is not None and self.policy.kind == "nft" and share != 0:
                loss = loss + share * (self._negative_aware(inputs) * weights).sum()
            for term in terms:
                by = self._sampled if term.estimator in SAMPLED else self._by_engine
                loss = loss + at(term.weight, step) * by(term, inputs, weights, student)
        finally:
            self._seen = None
        return loss

    def _trls_loss(self, model: nn.Module, inputs: Rollouts, advantages: Tensor | None) -> Tensor:
        """TRL's own loss with these advantages; where nothing of it is asked for, 0, and the forward that the other
        terms need."""
        if advantages is None and (self.beta != 0 or self._entropy_bonus_enabled or self.aux_loss_enabled):
            advantages = torch.zeros_like(inputs["advantages"])
        if advantages is not None:
            return super()._compute_loss(model, inputs | {"advantages": advantages})
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logq = self._get_per_token_logps_and_entropies(model, ids, attention, inputs["completion_ids"].shape[1])[0]
        return 0.0 * logq.sum()

    def _negative_aware(self, inputs: Rollouts) -> Tensor:
        """Its value ``[B, C]``, 0 for the completions that its mask leaves out, corrected for vLLM's probabilities."""
        assert self._seen is not None and self._seen.logq is not None and self.policy is not None
        logq = self._seen.logq
        old = inputs.get("old_per_token_logps", logq.detach())
        graded, rate = inputs["graded"].unsqueeze(1), inputs["pass_rate"].unsqueeze(1)
        value = self.formulas.negative_aware(logq, old, graded, rate) * inputs[f"kept@{self.policy.name}"].unsqueeze(1)
        return value * inputs.get("importance_sampling_ratio", 1.0)

    def _token_weights(self, inputs: Rollouts) -> Tensor:
        accumulation = float(self.current_gradient_accumulation_steps)
        items = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.loss_type in OVER_STEP:  # TRL's count spans the generation, of which a step is a part
            items = items * accumulation / self.args.steps_per_generation
        return token_weights(
            self.loss_type, counted_in(inputs), longest=self.max_completion_length, items=items,
            accumulation=accumulation,
        )  # fmt: skip

    def _sampled(self, term: TeacherTerm, inputs: Rollouts, weights: Tensor, student: nn.Module) -> Tensor:
        """An estimator of sampled tokens, with the importance weight of samples that an older policy drew."""
        assert self._seen is not None and self._seen.logq is not None
        logq, logp = self._seen.logq, inputs[f"logp@{term.teacher}"]
        looked_at = self._looked_at(term, inputs)
        logp = torch.where(looked_at, logp, logq.detach())  # where nothing is said there is no difference
        value = self.formulas.estimators[term.estimator](logp, logq)
        ratio = 1.0
        if "old_per_token_logps" in inputs:
            ratio = (logq - inputs["old_per_token_logps"]).exp().detach()
        if "importance_sampling_ratio" in inputs:
            ratio = ratio * inputs["importance_sampling_ratio"]
        self._note(term, value.detach(), looked_at, inputs, "loss")
        self._note(term, self.formulas.estimators["k3"](logp, logq.detach()), looked_at, inputs, "reverse_kl")
        return (value * ratio * weights * looked_at).sum() * inputs.get(f"scale@{term.name}", 1.0)

    def _by_engine(self, term: TeacherTerm, inputs: Rollouts, weights: Tensor, student: nn.Module) -> Tensor:
        """A divergence of the whole vocabulary, from the hidden states of the policy's own forward."""
        assert self._seen is not None and self._seen.hidden is not None
        looked_at = self._looked_at(term, inputs)
        width = looked_at.shape[1]
        hidden = self._seen.hidden[:, -width - 1 : -1][looked_at]
        batch = dict(as_batch(inputs, looked_at))
        weight = weights * inputs.get(f"scale@{term.name}", 1.0)
        column = torch.cat([torch.zeros_like(inputs["prompt_ids"], dtype=weight.dtype), weight], 1)
        batch["column:weight"] = column.gather(1, moved(inputs))
        if term.estimator == "topk":
            ids, logp = inputs[f"ids@{term.teacher}"][looked_at], inputs[f"top@{term.teacher}"][looked_at]
            signals: Any = Sparse(ids[:, : term.k], logp[:, : term.k], "ghost")
        else:
            signals = self.teachers[term.teacher].score(batch)
        objective = self.whole_terms[term.name]
        ones = torch.ones(2, dtype=torch.int64, device=hidden.device)

        def at_head(states: Tensor) -> Tensor:
            head, taught = head_of(student), {term.teacher: signals}
            loss, tally = objective(states, head, taught, batch, ones, step=self.state.global_step)
            self.measured.add({f"{term.name}/loss": tally[f"{term.name}/value"]})
            if term.kind == "reverse_kl" and term.estimator == "exact":  # of the likeliest tokens it is a lower bound
                self.measured.add({f"{term.name}/reverse_kl": tally[f"{term.name}/value"].clone()})
            return loss

        with self.accelerator.autocast():
            return through(head_module(student), head_module(student), at_head, hidden)

    def _note(self, term: TeacherTerm, value: Tensor, looked_at: Tensor, inputs: Rollouts, what: str) -> None:
        """Sum and count of a value by domain, for the log."""
        domains = inputs["domain_ids"].unsqueeze(1).expand_as(looked_at)[looked_at]
        exact = torch.float32 if value.device.type == "mps" else torch.float64
        tally = torch.zeros(len(self.measured.domains), 2, dtype=exact, device=value.device)
        tally[:, 0].index_add_(0, domains, value[looked_at].to(exact))
        tally[:, 1].index_add_(0, domains, torch.ones_like(domains, dtype=exact))
        self.measured.add({f"{term.name}/{what}": tally})

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        return muon_adamw_where_asked(self, model) or super().create_optimizer(model)

    # -- evaluation, log, checkpoints --------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return evaluate(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last line of training."""
        if "loss" in logs:
            step = self.state.global_step
            logs.update(self.measured.take(self.accelerator))
            for term in [*self.terms, *([self.policy] if self.policy else [])]:
                if callable(term.weight):
                    logs[f"{term.name}/weight"] = term.weight(step)
            for objective in self.whole_terms.values():
                logs.update(objective.scheduled(step))
            logs["tokens"] = int(self.tokens_seen)
        self._metrics["eval"].clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        mark = {
            "tokens_seen": int(self.tokens_seen), "completions_seen": self.completions_seen,
            "seconds": seconds_of(self), "unlogged": unlogged(self), "micro_batches": self._step,
            "metrics": dict(self._metrics["train"]), "some_ended": self.ends_seen.some,
            "entropy": {name: getattr(self, name) for name in ENTROPY_CONTROL if self.use_adaptive_entropy},
        }  # fmt: skip

        def save() -> None:
            super(GRPOTrainer, self)._save_checkpoint(model, trial)
            if self._step % self._steps_per_rollout:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                rollout_files.save(folder, self.accelerator.process_index, self._buffered_inputs)

        save_checkpoint(self, save, mark)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            mark = read_mark(Path(checkpoint))
            self.tokens_seen.fill_(mark["tokens_seen"])
            self.completions_seen = mark["completions_seen"]
            self._step = mark["micro_batches"]
            self.ends_seen.some = mark["some_ended"]
            for name, value in mark.get("entropy", {}).items():
                setattr(self, name, value)
            for name, values in mark["metrics"].items():
                self._metrics["train"][name].extend(values)
            device = self.accelerator.device
            self._buffered_inputs = rollout_files.load(Path(checkpoint), self.accelerator.process_index, device)
            self.add_callback(Unlogged(self, mark["unlogged"]))
