"""Where the assistant speaks in a conversation that a chat template rendered, as spans of characters."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTINEL = "\ue000"  # a private-use character, which stands in for the content of a message
TEMPLATE_ERRORS = (TemplateError, TypeError, KeyError)  # what a template does with messages that it was not made for
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """A tokenizer's chat template and what is needed of it to find the assistant's turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    @cached_property
    def added(self) -> re.Pattern[str]:
        """Matches any added token, such as `<|im_end|>`."""
        tokens = sorted(self.tokenizer.added_tokens_encoder, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def text(self, messages: list[dict], tools: list | None, *, generation_prompt: bool = False, where: str) -> str:
        """The conversation as the template writes it."""
        self._source(tools, where)
        try:
            return self._plain(messages, tools, generation_prompt)
        except TEMPLATE_ERRORS as error:
            raise ValueError(f"{where}: the chat template refuses the messages: {error}") from None

    def assistant_spans(
        self, messages: list[dict], tools: list | None, *, first: int = 0, where: str
    ) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text, and a span from the first character to the end-of-turn token of each assistant turn.

        A template with `{% generation %}` says itself what the assistant writes. Otherwise a turn begins where the
        messages before it end, rendered with the generation prompt, and ends where the messages up to it end. Where the
        template rewrites earlier messages (drops their reasoning, say), that is no prefix of the whole, and the turn is
        found by rendering it once more with another content.

        Args:
            messages: the conversation.
            tools: JSON schemas of the tools, or None.
            first: turns before this message do not count.

        Raises:
            ValueError: there is no template, it refuses the messages, or a turn cannot be found.
        """
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        text = self.text(messages, tools, where=where)
        marked = self._marked_spans(messages, tools) if GENERATION.search(self._source(tools, where)) else []
        if len(marked) == len(turns):
            spans = [
                (start, self._marked_end(text, end, messages[: turn + 1], tools))
                for turn, (start, end) in zip(turns, marked, strict=True)
                if turn >= first
            ]
        elif marked and not first:
            spans = marked
        else:
            spans = [self._turn(text, messages, turn, tools, where) for turn in turns if turn >= first]
        return text, [(start, self._trimmed(text, start, end)) for start, end in spans]

    def _source(self, tools: list | None, where: str) -> str:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{where}: the rows are messages, but the tokenizer {self.tokenizer.name_or_path!r} has no chat "
                "template; name a file with one in student.chat_template, or use `prompt`/`completion` or `text`"
            )
        return self.tokenizer.get_chat_template(tools=tools)

    def _plain(self, messages: list[dict], tools: list | None, generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=generation_prompt, tokenize=False
        )

    def _marked_spans(self, messages: list[dict], tools: list | None) -> list[tuple[int, int]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        _, spans = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=self.tokenizer.get_chat_template(tools=tools),
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(start, end) for start, end in spans[0]]

    def _marked_end(self, text: str, end: int, messages: list[dict], tools: list | None) -> int:
        """The end of a marked turn, its end-of-turn token included where the template leaves that outside the mark."""
        if self._ends_with_added(text[:end]):
            return end
        upto = self._attempt(messages, tools)
        if upto is not None and text.startswith(upto) and self.added.match(text, end, len(upto)):
            return len(upto)
        return end

    def _turn(self, text: str, messages: list[dict], turn: int, tools: list | None, where: str) -> tuple[int, int]:
        before = self._attempt(messages[:turn], tools, generation_prompt=True)
        upto = text if turn == len(messages) - 1 else self._attempt(messages[: turn + 1], tools)
        if before and upto and upto.startswith(before) and text.startswith(upto):
            return len(before), len(upto)
        return self._turn_by_content(text, messages, turn, tools, where)

    def _turn_by_content(
        self, text: str, messages: list[dict], turn: int, tools: list | None, where: str
    ) -> tuple[int, int]:
        changed = [*messages[:turn], {**messages[turn], "content": SENTINEL}, *messages[turn + 1 :]]
        head, found, tail = (self._attempt(changed, tools) or "").partition(SENTINEL)
        if not found or not text.startswith(head) or not text.endswith(tail) or len(head) + len(tail) > len(text):
            raise ValueError(
                f"{where}: cannot tell where message {turn} (assistant) stands in what the chat template writes; mark "
                "the assistant's words with {% generation %} ... {% endgeneration %} in the template, or set "
                "train.assistant_only_loss: false"
            )
        end = len(text) - len(tail)
        closing = self.added.match(text, end)
        return len(head), closing.end() if closing else end

    def _attempt(self, messages: list[dict], tools: list | None, generation_prompt: bool = False) -> str | None:
        """A part of a conversation, or None where the template refuses it as a whole conversation."""
        if not messages:
            return None
        try:
            return self._plain(messages, tools, generation_prompt)
        except TEMPLATE_ERRORS:
            return None

    def _ends_with_added(self, text: str) -> bool:
        return any(text.rstrip().endswith(token) for token in self.tokenizer.added_tokens_encoder)

    def _trimmed(self, text: str, start: int, end: int) -> int:
        """`end` without the white space that the template writes after the end-of-turn token."""
        stripped = len(text[start:end].rstrip()) + start
        if stripped < end and self._ends_with_added(text[start:end]):
            return stripped
        return end
