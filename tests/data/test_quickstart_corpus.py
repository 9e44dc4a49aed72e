"""The embedded corpus and its tokenizer: clean code, disjoint splits, an honest note on another library."""

import ast
import textwrap
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import llmkd.data.quickstart as quickstart
from llmkd.data.quickstart import cleaning, corpus, modules

TEACHER = Path(quickstart.__file__).with_name("teacher")
SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def cut(source):
    parsed = cleaning.parse(textwrap.dedent(source).encode())
    return cleaning.code(parsed, set()), parsed.docstrings


def whole(split, name):
    return corpus.code_modules(split) if name == "code" else corpus.prose_documents(split)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TEACHER)


# Cleaning.


def test_code_of_the_corpus_parses_and_has_no_docstrings():
    for split in corpus.SPLITS:
        for name, text in corpus.code_modules(split).items():
            scopes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, SCOPES)]
            assert all(ast.get_docstring(scope, clean=False) is None for scope in scopes), name


def test_code_of_the_corpus_has_no_runs_of_blank_lines_or_trailing_spaces():
    for text in corpus.code_modules("train").values():
        assert "\n\n\n" not in text
        assert all(line == line.rstrip() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""\nx = 1\n', "x = 1\n"),
        ('def f():\n    """Doc."""\n', "def f():\n    pass\n"),
        ('def f():\n    """Doc.\n\n    More."""\n    return 1\n', "def f():\n\n    return 1\n"),
        ('def f(): "Doc."\n', "def f(): pass\n"),
        ('def f(): "Doc."; return 1\n', "def f(): pass; return 1\n"),
        ('class é:\n    "é"; x = "é"\n', 'class é:\n    pass; x = "é"\n'),
        ('if True:\n    def f():\n        "D"\n', "if True:\n    def f():\n        pass\n"),
        ('def f():\n    x = """kept"""\n', 'def f():\n    x = """kept"""\n'),
        ('def f():\n    f"not {1} a docstring"\n', 'def f():\n    f"not {1} a docstring"\n'),
    ],
)
def test_docstrings_are_cut(source, expected):
    assert cut(source)[0] == expected


def test_docstrings_come_clean_and_in_order():
    two = '"""Two.\n\n    Flat.\n        Indented.\n    """'
    source = f'"""One."""\nclass A:\n    {two}\n    def f(self):\n        "Three."\n'
    assert cut(source)[1] == ["One.", "Two.\n\nFlat.\n    Indented.", "Three."]


def test_a_repeated_function_is_dropped_and_a_repeated_method_leaves_pass():
    body = "    return alpha + beta + gamma + delta + epsilon + zeta + eta + theta + iota\n"
    seen = set()
    first = cleaning.code(cleaning.parse(("def f():\n" + body + "x = 1\n").encode()), seen)
    again = cleaning.code(cleaning.parse(("def f():\n" + body + "y = 2\n").encode()), seen)
    nested = cleaning.code(cleaning.parse(("class A:\n" + textwrap.indent("def f():\n" + body, "    ")).encode()), seen)
    assert "def f" in first
    assert again == "y = 2\n"
    assert nested == "class A:\n    pass\n"


def test_a_statement_with_a_known_paragraph_is_dropped():
    text = "import a\nimport b\n\ndef f():\n    one()\n\n    two()\n\nx = 1\n"
    assert cleaning.drop_statements(text, {"two()"}) == "import a\nimport b\n\nx = 1\n"
    assert cleaning.drop_statements(text, {"import a import b", "x = 1"}) == "def f():\n    one()\n\n    two()\n"
    assert cleaning.drop_statements("a = 1\n", {"a = 1"}) == ""


@pytest.mark.parametrize("source", [b"print 'python 2'\n", b"\xff\xfe\x00", b"x = '\x00'\n"])
def test_a_source_this_python_cannot_read_is_skipped(source):
    assert cleaning.parse(source) is None


# The splits.


def test_no_paragraph_of_prose_stands_twice_and_none_held_out_in_training():
    train = [cleaning.normal(p) for text in whole("train", "prose").values() for p in text.split("\n\n")]
    heldout = [cleaning.normal(p) for text in whole("heldout", "prose").values() for p in text.split("\n\n")]
    assert len(set(train)) == len(train) > 5000
    assert len(set(heldout)) == len(heldout) > 200
    everything = " ".join(train)
    assert not [paragraph for paragraph in heldout if paragraph in everything]


def test_no_paragraph_of_held_out_code_stands_in_training():
    train = {cleaning.normal(p) for text in whole("train", "code").values() for p in text.split("\n\n")}
    heldout = [cleaning.normal(p) for text in whole("heldout", "code").values() for p in text.split("\n\n")]
    assert len(heldout) > 1000
    assert not [paragraph for paragraph in heldout if len(paragraph) >= cleaning.MIN_REPEAT and paragraph in train]


def test_no_held_out_question_stands_in_training_and_levels_are_even():
    rows = {split: corpus.rows("math", split) for split in corpus.SPLITS}
    questions = {split: {row["messages"][0]["content"] for row in rows[split]} for split in corpus.SPLITS}
    assert not questions["train"] & questions["heldout"]
    assert [sum(row["level"] == level for row in rows["heldout"]) for level in (1, 2, 3, 4)] == [100] * 4


@pytest.mark.parametrize("name", ["code", "prose"])
def test_rows_are_the_documents(name):
    for split in corpus.SPLITS:
        rows, documents = corpus.rows(name, split), whole(split, name)
        assert set(rows[0]) == {"text", "source"}
        assert {row["source"]: row["text"] for row in rows} == documents
        assert all(corpus.split_of(row["source"]) == split for row in rows)


def test_the_held_out_share_is_about_a_twentieth():
    for name in ("code", "prose"):
        heldout, train = (sum(map(len, whole(split, name).values())) for split in ("heldout", "train"))
        assert 0.03 < heldout / (heldout + train) < 0.09


def test_an_unknown_domain_or_split_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"domain 'poems'.*code, prose, math"):
        corpus.rows("poems", "train")
    with pytest.raises(ValueError, match=r"split 'test'.*train, heldout"):
        corpus.rows("code", "test")


# Another library than the listed one.


@pytest.fixture
def listing(monkeypatch):
    """A list of three modules that is true of the running Python."""
    entries = modules.relist()["modules"]
    true = {
        "python": modules.platform.python_version(),
        "modules": {name: dict(entries[name]) for name in ("abc", "json.decoder", "heapq")},
    }
    monkeypatch.setattr(modules, "listed", lambda: true)
    corpus._sources.cache_clear()
    yield true
    corpus._sources.cache_clear()


def test_the_same_library_gives_no_note(listing):
    assert corpus.version_note() is None


def test_another_version_is_named(listing):
    listing["python"] = "3.0.1"
    assert "listed from Python 3.0.1, this is Python " + modules.platform.python_version() in corpus.version_note()


def test_changed_and_missing_modules_are_counted_and_skipped(listing):
    listing["modules"]["abc"]["sha256"] = "0" * 64
    listing["modules"]["heapq"]["path"] = "no/such/file.py"
    assert "of 3 modules 1 differ and 1 are missing" in corpus.version_note()
    assert set(corpus._sources()[0]) == {"abc", "json.decoder"}


def test_the_committed_list_has_no_tests_and_stays_inside_the_library():
    entries = modules.listed()["modules"]
    assert modules.listed()["python"] == "3.11.7" and len(entries) > 400
    for entry in entries.values():
        parts = Path(entry["path"]).parts
        assert not {"test", "tests", "idle_test", "..", "site-packages"} & set(parts) and parts[0] != "/"


# The tokenizer.


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a  b\t\tc\n\n\n    d\r\n",
        "".join(map(chr, range(256))),
        "naïve 日本語 🙂 \u200d\u0301",
        "１٣12.50",
        " \n x",
    ],
)
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_single_byte_has_a_token(tokenizer):
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = tokenizer.get_vocab()
    assert len(ByteLevel.alphabet()) == 256 and all(symbol in vocabulary for symbol in ByteLevel.alphabet())
    assert len(tokenizer) == len(vocabulary) == 2048


def test_digits_are_single(tokenizer):
    tokens = tokenizer.tokenize("12 + 345 = x9")
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("123459")
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isdigit() for c in token)]


def test_plain_text_starts_with_bos(tokenizer):
    ids = tokenizer("def f")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]


def test_special_tokens_are_five_and_distinct(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"])
    assert ids == [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, ids[3], ids[4]]
    assert len(set(ids)) == 5


def test_the_assistant_mask_is_the_answer_and_its_end_and_the_prompt_a_prefix(tokenizer):
    for row in corpus.rows("math", "heldout")[:40]:
        messages = row["messages"]
        full = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids, mask = full["input_ids"], full["assistant_masks"]
        assert ids[: len(prompt)] == prompt
        assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[len(prompt) : -1]) == messages[1]["content"]


def test_a_second_turn_continues_the_first(tokenizer):
    messages = corpus.rows("math", "heldout")[0]["messages"]
    first = tokenizer.apply_chat_template(messages, tokenize=False)
    both = tokenizer.apply_chat_template(messages * 2, tokenize=False)
    assert both.startswith(first) and both.count("<|bos|>") == 1 and both.count("<|end|>") == 2


def test_another_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="knows the roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_training_gives_the_same_tokenizer_twice():
    from llmkd.data.quickstart.tokenizer import train

    texts = [row["text"] for row in corpus.rows("prose", "heldout")]
    first, second = train(texts, 400), train(texts, 400)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_math_rows_fit_the_quickstarts_length(tokenizer):
    rows = corpus.rows("math", "heldout")
    lengths = [len(tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]) for row in rows]
    assert max(lengths) <= 128
