"""The vocabulary of CONTRIBUTING.md: which words are refused, where they are found, and that nothing has them."""

import re

import pytest

from docs.tools import prose, words


def test_nothing_uses_a_word_that_the_vocabulary_refuses():
    assert words.check() == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The router starts anew.", [(1, "anew")]),
        ("One\ntwo.\nIt lets\ngo of a page.", [(3, "lets go of")]),  # over the end of a line
        ("Placed Beside OUT, behind a gate", [(1, "Beside"), (1, "behind")]),
        ("what it gives out, what is handed on, and units that change places", [
            (1, "gives out"), (1, "handed on"), (1, "change places")]),
        ("it waits for ever", [(1, "for ever")]),
        ("files are left behind; it is behind on eight; 0.1 behind plain fine-tuning", []),
        ("besides, renewed, forever, outputs, takes a file in", []),
        ("the argument `beside` of `grow`", []),
    ],
)  # fmt: skip
def test_words_with_their_lines(text, found):
    assert words.words(text) == found


def test_docstrings_comments_and_strings_are_read_and_names_are_not():
    source = '''"""A module.

It starts anew.
"""

beside = 1  # what lies behind it


def f(behind):
    """Return what forward gives out."""
    raise ValueError(f"{behind} asleep, {beside}"
        " beside it")
'''
    assert words.faults_of_module(source) == [
        (3, "anew"), (6, "behind"), (10, "gives out"), (11, "asleep"), (11, "beside"),
    ]  # fmt: skip


def test_what_a_program_writes_from_results_is_left_out():
    page = "By hand, anew.\n\n<!-- written by benchmarks/architectures.py -->\n\n| a message | anew |\n"
    assert words.words(prose.by_hand(page)) == [(1, "anew")]


def test_every_word_is_in_the_vocabulary():
    """The "not" column names each word, so that a contributor can look it up."""
    column = [
        row.split("|")[3] for row in (words.ROOT / words.VOCABULARY).read_text().splitlines() if row.count("|") == 4
    ]
    named = " ".join(column)
    for pattern, example in {
        r"anew": "anew", r"beside": "beside", r"for ever": "for ever", r"behind": "behind", r"asleep": "asleep",
        r"neurons?": "neuron", r"(let|lets|letting) go( of)?": "let go of", r"(give|gives|gave|giving|put|puts) out": "gives out",
        r"(hand|hands|handed|handing) on": "handed on", r"(take|takes|took|taken) in": "takes in",
        r"(change|changes|changed|changing) places": "change places", r"held against": "held against",
        r"what is on": "what is on", r"so manieth": "so manieth",
    }.items():  # fmt: skip
        assert pattern in words.INSTEAD
        assert re.fullmatch(pattern, example)
        assert example in named, pattern
    assert len(words.INSTEAD) == 14
