"""Prompts as token ids, and what may not stand in them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from flamvid.errors import InputError
from flamvid.text.prompt import MEDIA, PromptFormat, Turn
from tests.tiny import make_tokenizer


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    tokenizer = make_tokenizer()
    return PromptFormat(tokenizer, *tokenizer.convert_tokens_to_ids(["<bos>", "<media>", "<end>"]))


def text_of(prompts: PromptFormat, ids: list[int]) -> str:
    text: str = prompts.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


def test_a_caption_starts_after_its_media(prompts: PromptFormat) -> None:
    assert prompts.caption() == prompts.caption("  ") == [prompts.bos_id, prompts.media_id]
    opened = prompts.caption("  a red ")
    # The opening is not closed by a space: the next word brings its own.
    assert text_of(prompts, opened) == "<bos><media> a red"


def test_labels_stand_in_front_of_the_media(prompts: PromptFormat) -> None:
    ids = prompts.caption("a red", ["dog", "swing"])
    assert text_of(prompts, ids) == "<bos> dog, swing.<media> a red"
    assert prompts.caption("a red", []) == prompts.caption("a red")


def test_other_layouts_and_tokens_around_media(prompts: PromptFormat) -> None:
    end = prompts.end_id
    form = PromptFormat(
        prompts.tokenizer,
        None,
        prompts.media_id,
        end,
        end,
        "{media}Out:",
        "U: {media}{question}!<end>",
    )
    assert text_of(prompts, form.caption(" a ")) == "<end><media><end>Out: a"
    assert text_of(prompts, form.question("what {media} {question}")) == (
        "U: <end><media><end>what {media} {question}!<end>"
    )
    # one token between two media serves both
    assert form.encode([MEDIA, MEDIA, "x"])[:5] == [end, form.media_id, end, form.media_id, end]
    with pytest.raises(InputError, match="special tokens"):
        form.question("<end>")


def test_shots_are_closed_pairs_in_front(prompts: PromptFormat) -> None:
    ids = prompts.caption("", [], [(["wall"], "a red wall"), ([], "blue paint ")])
    told = "<bos> wall.<media> a red wall<end><media> blue paint<end><media>"
    assert text_of(prompts, ids) == told
    ids = prompts.question("now?", [("colour?", "red")])
    asked = "<bos><media> Question: colour? Answer: red<end><media> Question: now? Answer:"
    assert text_of(prompts, ids) == asked


def test_shots_end_where_what_is_captioned_or_asked_about_begins(prompts: PromptFormat) -> None:
    shots = [(["wall"], "a red wall"), ([], "blue paint")]
    one = prompts.caption("so", ["dog", "swing"], shots)
    two = prompts.caption("", ["cat"], shots)
    end = prompts.shots_end(one)
    assert end == prompts.shots_end(two)
    assert one[:end] == two[:end]
    assert text_of(prompts, one[end:]) == " dog, swing.<media> so"
    # A layout may hold the end token itself.
    form = PromptFormat(
        prompts.tokenizer,
        prompts.bos_id,
        prompts.media_id,
        prompts.end_id,
        question_layout="U: {media}{question}<end>A:",
    )
    ids = form.question("now?", [("colour?", "red"), ("size?", "big")])
    assert text_of(prompts, ids[form.shots_end(ids) :]) == "U: <media>now?<end>A:"
    assert form.shots_end(form.question("now?")) == form.shots_end([7, 8]) == 0


@pytest.fixture(scope="module")
def llamas() -> PromptFormat:
    """By a tokenizer like Llama's, which begins whatever it is given with a space."""
    letters = ["<unk>", "<bos>", "<media>", "<end>", "\u2581", *"Outp:redQAfwoa?"]
    letters = list(dict.fromkeys(letters))
    llama = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "\u2581")
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=llama, unk_token="<unk>")
    return PromptFormat(tokenizer, None, 2, 3, None, "{media}Output:", "{media}Q: {question} A:")


def told(form: PromptFormat, ids: list[int]) -> str:
    return "".join(form.tokenizer.convert_ids_to_tokens(ids)).replace("\u2581", "_")


def test_texts_side_by_side_are_read_as_one(llamas: PromptFormat) -> None:
    """No two spaces may stand in a text."""
    assert told(llamas, llamas.caption("red")) == "<media>_Output:_red"
    shots = llamas.caption("", [], [([], "red")])
    assert told(llamas, shots) == "<media>_Output:_red<end><media>_Output:"
    asked = llamas.question("few?", [("two?", "red")])
    assert told(llamas, asked) == "<media>_Q:_two?_A:_red<end><media>_Q:_few?_A:"


def test_words_that_follow_a_text_begin_with_one_space(
    llamas: PromptFormat, prompts: PromptFormat
) -> None:
    assert told(llamas, llamas.answer("two?", " red ")) == "_red<end>"
    assert told(llamas, llamas.within("red wood")) == "_red_wood"
    assert text_of(prompts, prompts.answer("two?", " red ")) == " red<end>"
    assert prompts.within("red") == prompts.encode_text(" red")
    with pytest.raises(InputError, match="special tokens"):
        prompts.answer("two?", "red<end>")


def test_turns_without_new_media_are_about_the_old(prompts: PromptFormat) -> None:
    ids = prompts.dialogue([Turn(2, "a?", "b"), Turn(0, "c?")])
    told = "<bos><media><media> Question: a? Answer: b<end> Question: c? Answer:"
    assert text_of(prompts, ids) == told


@pytest.mark.parametrize("text", ["a <media> b", "<end>", "x<bos>"])
def test_no_text_smuggles_a_special_token_in(prompts: PromptFormat, text: str) -> None:
    for attempt in (
        lambda: prompts.caption(text),
        lambda: prompts.caption("", [text]),
        lambda: prompts.caption("", [], [([], text)]),
        lambda: prompts.question(text),
        lambda: prompts.question("a", [(text, "b")]),
        lambda: prompts.question("a", [("b", text)]),
    ):
        with pytest.raises(InputError, match="special tokens can't be part of a text"):
            attempt()
    # A layout's own words are no media, when a user says them.
    assert prompts.caption("{media}").count(prompts.media_id) == 1


def test_a_question_is_laid_out_as_in_the_paper(prompts: PromptFormat) -> None:
    ids = prompts.question(" What colour? ")
    assert text_of(prompts, ids) == "<bos><media> Question: What colour? Answer:"


@pytest.mark.parametrize("question", ["", "  ", "\n\t"])
def test_an_empty_question_is_refused(prompts: PromptFormat, question: str) -> None:
    with pytest.raises(InputError, match="question is empty"):
        prompts.question(question)


def test_media_stand_where_they_are_put(prompts: PromptFormat) -> None:
    ids = prompts.encode([MEDIA, " a red wall", MEDIA, " blue"])
    assert text_of(prompts, ids) == "<bos><media> a red wall<media> blue"
    assert ids.count(prompts.bos_id) == 1


@pytest.mark.parametrize("token", ["<bos>", "<media>", "<end>"])
@pytest.mark.parametrize("text", ["{}", "a red{}wall", "{0}{0} blue", "\n{}\n"])
def test_special_tokens_cannot_be_smuggled_in(prompts: PromptFormat, token: str, text: str) -> None:
    smuggled = text.format(token)
    with pytest.raises(InputError, match=token):
        prompts.encode_text(smuggled)
    with pytest.raises(InputError, match="special tokens"):
        prompts.caption(smuggled)
    with pytest.raises(InputError, match="special tokens"):
        prompts.question(smuggled)


@pytest.mark.parametrize("text", ["< media>", "<med ia>", "media", "<MEDIA>", "<end", "a <b> c"])
def test_what_only_looks_special_is_text(prompts: PromptFormat, text: str) -> None:
    assert text_of(prompts, prompts.encode_text(text)) == text


def test_decoding_leaves_special_tokens_and_spare_spaces_out(prompts: PromptFormat) -> None:
    ids = [prompts.bos_id, prompts.media_id, *prompts.encode_text("  a red \n wall "), 3]
    assert prompts.end_id == 3
    assert prompts.decode(ids) == "a red wall"
