"""The table of methods: what can be asked of a recipe, where it comes from and how well it is known to work here.

``llmkd methods`` and the README print this table; nothing else reads it.  The tags are those of Xu et al., A Survey on
Knowledge Distillation of Large Language Models, 2024 (arXiv 2402.13116): how the teacher's knowledge is elicited, and
by which kind of algorithm the student takes it in.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal, get_args

Elicitation = Literal["labeling", "expansion", "data curation", "feature", "feedback", "self-knowledge"]
Algorithm = Literal[
    "supervised fine-tuning", "divergence and similarity", "reinforcement learning", "ranking optimisation"
]
Evidence = Literal["measured here", "tests only", "planned"]

EVIDENCE: dict[str, str] = {
    "measured here": "trained on CPU with its numbers in the README",
    "tests only": "formula and gradient are tested, and the recipe trains two steps of tiny models",
    "planned": "not built; a recipe that asks for it is refused",
}
ELICITATION: tuple[str, ...] = get_args(Elicitation)
ALGORITHM: tuple[str, ...] = get_args(Algorithm)


@dataclass(frozen=True)
class Method:
    """One row.  method: as in ``train.method``; terms: as in ``objective.terms``; recipe: its path from the root;
    changes: overrides that make the recipe this method."""

    method: str
    terms: str
    paper: str
    recipe: str
    elicitation: Elicitation
    algorithm: Algorithm
    evidence: Evidence
    changes: tuple[str, ...] = ()


HEADINGS = ("method", "terms", "paper", "recipe", "elicitation", "algorithm", "evidence")

METHODS: tuple[Method, ...] = (
    Method(
        "sft", "cross_entropy",
        "Kim and Rush, Sequence-Level Knowledge Distillation, 2016 (arXiv 1606.07947), if the teacher wrote the data",
        "recipes/quickstart/teacher.yaml", "labeling", "supervised fine-tuning", "measured here",
    ),
    Method(
        "offpolicy", "forward_kl",
        "Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531)",
        "recipes/quickstart.yaml", "feature", "divergence and similarity", "measured here",
    ),
    Method(
        "offpolicy", "forward_kl + cross_entropy",
        "Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531)",
        "recipes/offpolicy/qwen2.5_0.5b_from_7b.yaml", "feature", "divergence and similarity", "tests only",
    ),
    Method(
        "offpolicy", "reverse_kl",
        "the divergence of Gu et al., MiniLLM, 2023 (arXiv 2306.08543), on the data's completions",
        "recipes/offpolicy/smollm2_lora.yaml", "feature", "divergence and similarity", "tests only",
    ),
    *(
        Method(
            "offpolicy", term, paper, "recipes/quickstart.yaml", "feature", "divergence and similarity", "tests only",
            (f"objective.terms.kd.term={term}", *(f"objective.terms.kd.{knob}" for knob in knobs)),
        )
        for term, paper, knobs in (
            ("jsd", "the divergence of Agarwal et al., GKD, 2023 (arXiv 2306.13649), on the data's completions",
             ("beta=0.5",)),
            ("skew_forward_kl", "the divergence of Ko et al., DistiLLM, 2024 (arXiv 2402.03898), on the data's "
             "completions", ("alpha=0.1",)),
            ("skew_reverse_kl", "the same", ("alpha=0.1",)),
            ("total_variation", "the divergence of Wen et al., f-Divergence Minimization for Sequence-Level Knowledge "
             "Distillation, 2023 (arXiv 2307.15190)", ()),
            ("hellinger", "an f-divergence, as the same", ()),
            ("alpha_beta", "Wang et al., ABKD, 2025 (arXiv 2505.04560)", ("alpha=0.2", "beta=0.7")),
            ("adaptive_kl", "Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large "
             "Language Models, 2024 (arXiv 2404.02657)", ("mu=0.5",)),
            ("balanced_kl", "adapted from Amara et al., BD-KD, 2022 (arXiv 2212.12965)", ("low=1", "high=2")),
            ("taid", "Shing et al., TAID, 2025 (arXiv 2501.16937)", ()),
            ("mixture", "a convex mixture of any of these", ("of={forward_kl: 0.5, reverse_kl: 0.5}",)),
            ("nkd", "Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023 (arXiv 2303.13005)",
             ("gamma=1.5",)),
            ("squared_logit", "Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014 (arXiv 1312.6184)", ()),
        )
    ),
    Method(
        "onpolicy", "jsd",
        "Agarwal et al., On-Policy Distillation of Language Models, 2023 (arXiv 2306.13649)",
        "recipes/onpolicy/gkd.yaml", "feedback", "divergence and similarity", "tests only",
    ),
    Method(
        "onpolicy", "reverse_kl", "Thinking Machines Lab, On-Policy Distillation, 2025; here over the whole vocabulary",
        "recipes/onpolicy/opd.yaml", "feedback", "divergence and similarity", "tests only",
    ),
    Method(
        "onpolicy", "reverse_kl + future_reverse_kl",
        "Gu et al., MiniLLM, 2023 (arXiv 2306.08543), as the paper has it",
        "recipes/onpolicy/minillm.yaml", "feedback", "divergence and similarity", "tests only",
    ),
    Method(
        "onpolicy", "skew_forward_kl", "Ko et al., DistiLLM, 2024 (arXiv 2402.03898)",
        "recipes/onpolicy/distillm.yaml", "feedback", "divergence and similarity", "tests only",
    ),
    Method(
        "onpolicy", "skew_forward_kl + skew_reverse_kl", "Ko et al., DistiLLM-2, 2025 (arXiv 2503.07067)",
        "recipes/onpolicy/distillm2.yaml", "feedback", "divergence and similarity", "tests only",
    ),
    Method(
        "rl", "grpo", "Shao et al., DeepSeekMath, 2024 (arXiv 2402.03300)",
        "recipes/rl/grpo.yaml", "feedback", "reinforcement learning", "tests only",
    ),
    Method(
        "rl", "nft", "Chen et al., Bridging Supervised Learning and Reinforcement Learning, 2025 (arXiv 2505.18116)",
        "recipes/rl/nft.yaml", "feedback", "reinforcement learning", "tests only",
    ),
    Method(
        "rl", "grpo + reverse_kl", "KDRL in miniature: its teacher's term exact, over the whole vocabulary",
        "recipes/studies/kdrl_arithmetic/kdrl.yaml", "feedback", "reinforcement learning", "measured here",
    ),
    *(
        Method("rl", "grpo + reverse_kl", paper, recipe, "feedback", "reinforcement learning", "tests only")
        for paper, recipe in (
            ("Xu et al., KDRL, 2025 (arXiv 2506.02208), annealed", "recipes/kdrl_qwen.yaml"),
            ("KDRL with its mask, the teacher on wrong completions alone", "recipes/rl/kdrl_masking.yaml"),
            ("HDPO, the teacher in groups that are all wrong, as in arXiv 2609.04108", "recipes/rl/hdpo.yaml"),
            ("SRPO, the teacher on wrong and the reward on right completions, as in arXiv 2609.04108",
             "recipes/rl/srpo.yaml"),
            ("OPD-then-RL, arXiv 2609.04108", "recipes/rl/opd_then_rl.yaml"),
        )
    ),
)  # fmt: skip


def cells(method: Method) -> list[str]:
    """The row as text; what a method does not have is a dash."""
    *values, changes = astuple(method)
    recipe = HEADINGS.index("recipe")
    values[recipe] = " ".join([values[recipe], *(shlex.quote(change) for change in changes)])
    return [value or "-" for value in values]


def markdown(methods: Sequence[Method] = METHODS) -> str:
    """The table as Markdown, with links to the recipes, and what each kind of evidence means."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for method in methods:
        row = dict(zip(HEADINGS, cells(method), strict=True))
        row["method"] = f"`{row['method']}`"
        row["terms"] = " + ".join(f"`{term}`" for term in row["terms"].split(" + "))
        if method.recipe:
            row["recipe"] = f"[{method.recipe.removeprefix('recipes/')}]({method.recipe})"
            row["recipe"] += "".join(f" `{change}`" for change in method.changes)
        lines.append("| " + " | ".join(row.values()) + " |")
    meanings = [f"- *{kind}*: {meaning}" for kind, meaning in EVIDENCE.items()]
    return "\n".join([*lines, "", "Evidence:", *meanings]) + "\n"


def plain(methods: Sequence[Method] = METHODS) -> str:
    """The table for a terminal: a paragraph a method."""
    return "\n\n".join(
        "\n".join(f"{heading + ':':<13}{cell}" for heading, cell in zip(HEADINGS, cells(method), strict=True))
        for method in methods
    )
