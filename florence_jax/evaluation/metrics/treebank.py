"""Tokenize captions as COCO's caption evaluation does (Stanford's PTBTokenizer)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# Punctuation that pycocoevalcap drops. Brackets stay: it looks for them in capitals, when the
# tokenizer has turned all letters to lower case.
_MARKS = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
_PUNCTUATION = frozenset(_MARKS.split())
# Most words of a caption; no rule makes anything else of them, nor of what follows.
_PLAIN = re.compile(r"(?!(?:cannot|gonna|gotta|lemme|gimme|wanna)\b)[a-z]+(?=[ \n])", re.IGNORECASE)
_SPACES = re.compile("[ \t\u00a0\u2000-\u200a\u3000\u200b\u200e\u200f\ufeff\0]+|&nbsp;")
_NEWLINE = re.compile("\r\n|[\r\n\u2028\u2029\u000b\u000c\u0085]")


def tokenize(captions: Sequence[str]) -> list[str]:
    """Captions in lower case, words between single spaces, without punctuation.

    The words and the dropped punctuation are those of Stanford's PTBTokenizer 3.4.1 with
    `-preserveLines -lowerCase`, which pycocoevalcap runs in Java. "A man's dog, isn't it?" gives
    "a man 's dog is n't it".

    The tokenizer reads all captions as one text with one line each: whether an abbreviation at the
    end of a line ends a sentence depends on the first word of the next line. Pass all references of
    a data set in one call, and all captions of the model in another.
    """
    text = "\n".join(caption.replace("\n", " ") for caption in captions)
    lines: list[list[str]] = [[]]
    for token in treebank_tokens(text):
        if token == "\n":
            lines.append([])
        else:
            lines[-1].append(token.lower())
    return [
        " ".join(word for word in " ".join(line).split(" ") if word not in _PUNCTUATION).strip()
        for line in lines
    ]


def treebank_tokens(text: str) -> Iterator[str]:
    """The tokens of a text, letters as they are, with a newline token for each newline.

    Characters that are in no token, such as those beyond Unicode's basic plane, are left out.
    """
    # Made when they are first needed: the command line imports this for its help.
    from florence_jax.evaluation.metrics.treebank_rules import RULES

    place = 0
    while place < len(text):
        if spaces := _SPACES.match(text, place):
            place = spaces.end()
        elif plain := _PLAIN.match(text, place):
            yield plain[0]
            place = plain.end()
        else:
            best, length = None, 0
            for rule in RULES:
                found = rule.pattern.match(text, place)
                if found and found.end() - place > length:
                    best, length = (rule, found), found.end() - place
            if newline := _NEWLINE.match(text, place):
                yield "\n"
                place = newline.end()
            elif best is None:
                place += 1
            else:
                rule, found = best
                place = found.end(1)
                yield from rule.write(found[1])
