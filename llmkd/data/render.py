"""One row of data, in any accepted format, as a text and the characters of it that count.

Formats (the first that the columns allow is taken):

* `messages`: a conversation; `tools` is passed on to the chat template.
* `prompt` + `completion`: two strings, or two lists of messages.
* `text`: plain text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkd.data.chat import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

FORMATS = "`messages` | `prompt` and `completion` (strings or lists of messages) | `text`"


@dataclass(frozen=True)
class Rendering:
    """A text, the spans `[start, end)` of its characters that count, and whether it is `plain`.

    A plain text gets the tokenizer's own beginning of sequence and one EOS, which counts; a chat template writes both
    itself.
    """

    text: str
    spans: list[tuple[int, int]]
    plain: bool


def row_format(columns: Collection[str]) -> str | None:
    """Which format these columns hold: "messages", "prompt_completion", "text", or None."""
    if "messages" in columns:
        return "messages"
    if "prompt" in columns and "completion" in columns:
        return "prompt_completion"
    return "text" if "text" in columns else None


def prepare_tokenizer(tokenizer: PreTrainedTokenizerFast, where: str) -> PreTrainedTokenizerFast:
    """Check that a tokenizer can mask by position, and give it a pad token (its EOS) if it has none.

    Raises:
        ValueError: it is not a fast tokenizer (no character offsets), or it has no EOS token.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"{where}: the tokenizer {name!r} is not a fast one and gives no character offsets, which the masks are "
            "made from; use a tokenizer with a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{where}: the tokenizer {name!r} has no EOS token, so nothing would mark the end of a row; set "
            "`eos_token` in its tokenizer_config.json, or take another with student.tokenizer_name_or_path"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("%s: the tokenizer %r has no pad token; its EOS %r pads", where, name, tokenizer.eos_token)
    return tokenizer


def render(
    row: Mapping[str, Any],
    template: ChatTemplate,
    *,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool | None = None,
    where: str = "data",
) -> Rendering:
    """A row as text with its counted characters.

    Args:
        row: the columns of one row, unused ones included.
        template: the tokenizer's chat template; used for rows of messages alone.
        completion_only_loss: false counts the prompt of prompt/completion rows too. None means true.
        assistant_only_loss: false counts every message of a conversation, not the assistant's alone. None means true.

    Raises:
        ValueError: no accepted format, or a value of the wrong type.
    """
    kind = row_format(row)
    if kind is None:
        raise ValueError(f"{where}: found the columns {sorted(row)}; accepted are {FORMATS}")
    only_completion = completion_only_loss is not False
    only_assistant = assistant_only_loss is not False
    if kind == "text":
        text = _string(row["text"], "text", where)
        return Rendering(text, [(0, len(text))], plain=True)
    if kind == "messages":
        return _conversation(_messages(row["messages"], "messages", where), 0, row, template, only_assistant, where)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Rendering(prompt + completion, [(len(prompt) * only_completion, len(prompt + completion))], plain=True)
    prompt, completion = _messages(prompt, "prompt", where), _messages(completion, "completion", where)
    skipped = len(prompt) if only_completion else 0
    return _conversation([*prompt, *completion], skipped, row, template, only_assistant, where)


def _conversation(
    messages: list[dict], skipped: int, row: Mapping, template: ChatTemplate, only_assistant: bool, where: str
) -> Rendering:
    tools = _tools(row.get("tools"), where)
    if only_assistant:
        text, spans = template.assistant_spans(messages, tools, first=skipped, where=where)
        return Rendering(text, spans, plain=False)
    text = template.text(messages, tools, where=where)
    start = len(template.text(messages[:skipped], tools, generation_prompt=True, where=where)) if skipped else 0
    return Rendering(text, [(start, len(text))], plain=False)


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the column `{column}` holds {value!r:.60}, not a string")
    return value


def _messages(value: Any, column: str, where: str) -> list[dict]:
    """The messages without the empty keys that a table with one schema for all messages fills in."""
    known = (
        isinstance(value, list) and value and all(isinstance(message, dict) and "role" in message for message in value)
    )
    if not known:
        raise ValueError(
            f"{where}: the column `{column}` holds {value!r:.60}, not a list of messages such as "
            '[{"role": "user", "content": "..."}] (prompt and completion are both strings or both such lists)'
        )
    return [{"content": message.get("content") or ""} | _without_none(message) for message in value]


def _tools(value: Any, where: str) -> list[dict] | None:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{where}: the column `tools` holds a string that is not JSON: {error}") from None
    return _without_none(value) or None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
