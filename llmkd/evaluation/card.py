"""The model card: what was distilled from what, on which data, by which objective, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from llmkd.build import Job
from llmkd.config import Schedule, Term
from llmkd.evaluation.table import markdown
from llmkd.run import environment


def write_card(job: Job, summary: dict[str, Any]) -> None:
    """Write ``README.md`` beside the run and into the model folder, where the hub looks for it."""
    folder = Path(job.recipe.run.output_dir)
    text = card(job, summary)
    for target in (folder, folder / "model", folder / "adapter"):
        if target.is_dir():
            (target / "README.md").write_text(text)


def card(job: Job, summary: dict[str, Any]) -> str:
    recipe = job.recipe
    hub_names = [n for n in (recipe.student.model_name_or_path, *(t.model_name_or_path for t in recipe.teachers)) if n]
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmkd", "trl", "distillation" if recipe.train.method != "sft" else "sft"],
        "base_model": [n for n in hub_names if n.count("/") == 1 and not Path(n).exists()][:1],
        "datasets": [s.path for s in recipe.data.datasets if s.path.count("/") == 1 and not Path(s.path).exists()],
    }
    front = {key: value for key, value in front.items() if value}
    env = environment()
    base = recipe.student.model_name_or_path or f"a fresh {recipe.student.from_config['model_type']}"
    resolved = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).strip(), "---",
        f"# {recipe.run.name}",
        f"Trained with llmkd {env['llmkd']}" + (f" at commit `{env['commit']}`" if env["commit"] else "") + ".",
        f"- Base: {base}",
        *(f"- Teacher `{t.name}`: {t.model_name_or_path}" for t in recipe.teachers),
        *(f"- Data, domain `{s.domain}`: {s.path} {s.name or ''} ({s.split})" for s in recipe.data.datasets),
        "- Objective: " + " + ".join(_term(name, term) for name, term in recipe.objective.terms.items()),
        f"- Steps: {summary['steps']}, on {summary['processes']} process(es)",
        *(f"- Note: {note}" for note in summary["notes"]),
        "", "## Results", "", markdown(summary["results"]), "",
        "## Recipe", "", "```yaml", resolved.strip(), "```",
        "", "## Versions", "", "```json", json.dumps(env["packages"], indent=2), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _term(name: str, term: Term) -> str:
    """``0.5 x jsd(beta=0.3) (`kd`)``; what follows a schedule is said to."""
    knobs = ", ".join(f"{knob}={_said(value)}" for knob, value in term.knobs.items())
    return f"{_said(term.weight)} x {term.term}{f'({knobs})' if knobs else ''} (`{name}`)"


def _said(value: Any) -> str:
    if isinstance(value, Schedule):
        return f"<{value.schedule}>"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
