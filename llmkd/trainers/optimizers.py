"""Muon for hidden matrices, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

Groups = list[dict[str, Any]]


class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` and ``torch.optim.AdamW`` over disjoint parameters, behind one set of groups and one state.

    A learning-rate schedule scales both; a checkpoint holds both.  Jordan et al., Muon: An optimizer for hidden layers
    in neural networks, 2024.
    """

    def __init__(self, muon_groups: Groups, adamw_groups: Groups, **adamw: Any) -> None:
        self.split = len(muon_groups)
        self.muon = Muon(muon_groups)
        self.adamw = AdamW(adamw_groups, **adamw)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})
        self._share()

    def _share(self) -> None:
        """Make the two optimizers work on this one's groups and state."""
        self.muon.param_groups = self.param_groups[: self.split]
        self.adamw.param_groups = self.param_groups[self.split :]
        self.muon.state = self.adamw.state = self.state

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def muon_adamw(model: nn.Module, args: Any) -> MuonAdamW:
    """Muon at ``muon_learning_rate`` for the matrices between embedding and head, AdamW at ``learning_rate`` for the
    embeddings (of positions too), the head, stacks of matrices (experts) and vectors; no ``weight_decay`` on vectors.
    """
    outer = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    outer |= {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim == 2 and id(p) not in outer]
    tables = [p for p in trainable if id(p) in outer or p.ndim > 2]
    vectors = [p for p in trainable if p.ndim < 2]
    if not matrices:
        raise ValueError("train.muon_learning_rate: the student has no trainable hidden matrix")
    rate = {"lr": args.learning_rate}
    return MuonAdamW(
        [{"params": matrices, "lr": args.muon_learning_rate, "weight_decay": args.weight_decay}],
        [
            {"params": tables, "weight_decay": args.weight_decay, **rate},
            {"params": vectors, "weight_decay": 0.0, **rate},
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


def muon_adamw_where_asked(trainer: Any, model: nn.Module | None) -> MuonAdamW | None:
    """The trainer's optimizer where its ``muon_learning_rate`` is given, made if there is none yet; else None."""
    if trainer.args.muon_learning_rate is None or trainer.optimizer is not None:
        return None
    check_whole_parameters(trainer.accelerator)
    trainer.optimizer = muon_adamw(model or trainer.model, trainer.args)
    return trainer.optimizer


def check_whole_parameters(accelerator: Any) -> None:
    """Muon orthogonalises whole matrices: refuse sharded ones, ValueError."""
    state = accelerator.state
    if state.deepspeed_plugin is not None or getattr(state, "fsdp_plugin", None) is not None:
        raise ValueError(
            "train.muon_learning_rate: Muon needs whole matrices, DeepSpeed and FSDP shard them: leave it out, or "
            "train with plain data parallelism"
        )
