import pytest

from llmkd.data.vocabulary import compare

from chat_tokenizer import LINES, chat_tokenizer


def test_the_same_tokenizer_and_heads_need_no_word():
    assert compare(chat_tokenizer(), chat_tokenizer(), 300, 300) == (300, "")


@pytest.mark.parametrize("rows", [(512, 576), (576, 512)])
def test_padded_heads_train_on_the_common_rows_and_say_so(rows):
    common, message = compare(chat_tokenizer(), chat_tokenizer(), *rows, ("small", "big"))
    assert common == 512
    assert f"head of 'small' has {rows[0]} rows and that of 'big' {rows[1]}" in message
    assert "512 common rows" in message


def test_another_eos_is_said():
    common, message = compare(chat_tokenizer(eos="</s>"), chat_tokenizer(), 300, 300)
    assert common == 300 and message == "'student' ends with '</s>', 'teacher' with '<|im_end|>'"


def test_different_tokenizers_are_refused_by_the_first_difference():
    student, teacher = chat_tokenizer(), chat_tokenizer(lines=[line[::-1] for line in LINES])
    ours, theirs = (dict(map(reversed, tokenizer.get_vocab().items())) for tokenizer in (student, teacher))
    first = min(index for index in ours if ours[index] != theirs[index])
    with pytest.raises(ValueError) as error:
        compare(student, teacher, 300, 300, ("small", "big"))
    assert "student 'small' and teacher 'big' have different tokenizers" in str(error.value)
    assert f"id {first} is {ours[first]!r} for the student and {theirs[first]!r} for the teacher" in str(error.value)


def test_a_base_vocabulary_that_goes_on_is_another_tokenizer():
    with pytest.raises(ValueError, match=r"id 290 is no token for the student and '.*' for the teacher"):
        compare(chat_tokenizer(vocab_size=290), chat_tokenizer(vocab_size=300), 300, 300)


def test_tokens_added_to_one_are_fine_and_conflicts_are_not():
    student, teacher = chat_tokenizer(), chat_tokenizer()
    teacher.add_tokens(["<think>", "</think>"])
    common, message = compare(student, teacher, 320, 320)
    assert common == 320
    assert message == "2 added tokens are only in the tokenizer of 'teacher' (first: '<think>', id 300)"
    student.add_tokens(["<tool>"])
    with pytest.raises(ValueError, match="id 300 is '<tool>' for the student and '<think>' for the teacher"):
        compare(student, teacher, 320, 320)


def test_tokens_of_the_student_beyond_the_teachers_rows_are_said():
    student = chat_tokenizer()
    student.add_tokens(["<think>", "</think>"])
    common, message = compare(student, chat_tokenizer(), 302, 301)
    assert common == 301 and "1 tokens of 'student' lie beyond the common rows (first: '</think>', id 301)" in message


def test_a_head_smaller_than_its_tokenizer():
    with pytest.raises(ValueError, match="'teacher' has 200 rows in its head, but its tokenizer goes up to id 299"):
        compare(chat_tokenizer(), chat_tokenizer(), 300, 200)


@pytest.mark.assets
def test_real_families(assets):
    from transformers import AutoTokenizer

    def real(name):
        return AutoTokenizer.from_pretrained(assets / "tokenizers" / name)

    common, message = compare(real("qwen2"), real("qwen2"), 151936, 152064)
    assert common == 151936 and "151936 common rows" in message
    with pytest.raises(ValueError, match="id 0 is '!' for the student and '<unk>' for the teacher"):
        compare(real("qwen2"), real("mistral-v1"), 151936, 32000)
    assert compare(real("gpt2"), real("phi-2"), 50257, 51200)[0] == 50257
