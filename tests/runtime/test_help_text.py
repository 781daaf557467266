"""Help texts are wrapped: paragraphs, terms and commands keep their form."""

from florence_jax.runtime.help_text import wrapped

SENTENCE = "A run that was stopped goes on with the same command, from the last step that it saved."
HALVES = "A run that was stopped goes on with the same command,\nfrom the last step that it saved."


def test_a_text_that_fits_is_left_as_it_is():
    text = "Title.\n\n  a   one\n  bb  two, broken\n      early\n\nend\n of it\n"
    assert wrapped(text, 30) == text.removesuffix("\n")


def test_a_paragraph_is_broken_anew_where_its_lines_were_full():
    assert wrapped(SENTENCE, 57) == HALVES
    assert wrapped(HALVES, 50).splitlines() == [
        "A run that was stopped goes on with the same",
        "command, from the last step that it saved.",
    ]


def test_a_line_that_ended_early_keeps_its_end():
    assert wrapped(f"{HALVES}\nFirst.\nSecond.", 40).splitlines() == [
        "A run that was stopped goes on with the",
        "same command, from the last step that it",
        "saved.",
        "First.",
        "Second.",
    ]


def test_other_indentations_are_other_paragraphs():
    assert wrapped(f"note:\n  {SENTENCE}\n    more\n  less", 60).splitlines() == [
        "note:",
        "  A run that was stopped goes on with the same command, from",
        "  the last step that it saved.",
        "    more",
        "  less",
    ]


def test_the_meaning_of_a_term_stands_below_itself():
    assert wrapped(f"  resume  {SENTENCE}\n  stop    ends it", 50).splitlines() == [
        "  resume  A run that was stopped goes on with the",
        "          same command, from the last step that it",
        "          saved.",
        "  stop    ends it",
    ]


def test_a_command_is_broken_before_an_option_and_runs_in_a_shell():
    text = 'examples:\n  X=1 florence-jax predict a.jpg --task "<OD> b c" --text cat --text dog'
    assert wrapped(text, 40).splitlines() == [
        "examples:",
        "  X=1 florence-jax predict a.jpg \\",
        '      --task "<OD> b c" --text cat \\',
        "      --text dog",
    ]
    broken = "  python -m train.plan --model large \\\n      --topology v5e:16x16 --sweep"
    assert wrapped(broken, 40) == broken
    assert wrapped(broken, 37).splitlines() == [
        "  python -m train.plan \\",
        "      --model large \\",
        "      --topology v5e:16x16 --sweep",
    ]


def test_a_word_wider_than_the_text_stays_whole():
    word = "a" * 50
    assert wrapped(f"see {word} or-not", 20).splitlines() == ["see", word, "or-not"]
