"""Token rules of the Penn Treebank, as in Stanford's PTBTokenizer 3.4.1.

Like that program, this file is a table of patterns: the longest match wins, and the earlier one
among equals. It was written anew and compared with the program token by token. Literal letters
match in both cases, sets of letters in the cases that they show: "mass." is a word and a full stop,
"Mass." and "mASS." a state.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One kind of token.

    Attributes:
        pattern: the token as group 1, and what must follow it: that counts for the length of the
            match, but is left to the next token.
        write: the token and those that it is cut into, from the text matched; by default itself.
    """

    pattern: re.Pattern[str]
    write: Callable[[str], tuple[str, ...]] = lambda text: (text,)


def _letters() -> str:
    """Letters of Unicode's basic plane and marks that belong to words, as a set for a pattern."""
    ranges: list[list[int]] = []
    for code in range(0x10000):
        category = unicodedata.category(chr(code))
        if category[0] == "L" or (category == "Mn" and code < 0x1000) or code == 0xAD:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\u{low:04x}-\\u{high:04x}" for low, high in ranges)


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


def _nocase(pattern: str) -> str:
    """Letters outside of sets match in both cases."""
    return "".join(
        part
        if part.startswith(("[", "\\"))
        else re.sub(r"[A-Za-z]", lambda m: f"[{m[0].upper()}{m[0].lower()}]", part)
        for part in re.findall(r"\[[^\]]*\]|\\.|\(\?:|[^\[\\(]+|\(", pattern)
    )


_SET = _letters()
_L = rf"(?:[{_SET}]|&[aeiouAEIOU](?:[aA][cC][uU][tT][eE]|[gG][rR][aA][vV][eE]|[uU][mM][lL]);)"
_LD = rf"(?:{_L}|\d)"
_AD = rf"[{_SET}\d]"
_SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
_END = "[ \t\u00a0\u2000-\u200a\u3000\r\n]"
_TAG = "[A-Za-z][A-Za-z0-9_:.-]*"
_VALUE = rf"""(?:'[^'\r\n]*'|"[^"\r\n]*"|{_TAG})"""
_SGML = rf"<(?:[!?][A-Za-z-][^>\r\n]*|{_TAG}(?: +{_TAG}(?: *= *{_VALUE})?)* */?|/{_TAG}) *>"
_SENTENCE_END = rf"{_END}(?:{_END}|[A-Z]|{_SGML})"
_APOS = "(?:['\u0092\u2019]|&apos;)"
_APOS_LIKE = "(?:['\u0092\u2019`\u0091\u2018\u201b]|&apos;)"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_NUM = r"(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_AUX = _nocase(rf"{_APOS}(?:[msdMSD]|re|ve|ll)")
_NOT = _nocase(rf"n{_APOS_LIKE}t")
_ACRO = _nocase(
    r"(?:U\.S\.-(?:U\.K|U\.S\.S\.R)|(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|[A-Za-z](?:\.[A-Za-z])+)"
)
_IN_SENTENCE = "[,;:\u3001]"

_OFTEN_LAST = _nocase(
    _any(
        """Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thurs Fri
        Ala Ariz [A]z [A]rk Calif Colo Conn Ct Dak [D]el Fla Ga [I]ll Ind Kans? Ky [L]a [M]ass Md
        Mich Minn [M]iss Mo Mont Neb Nev Okla [O]re [P]a Penn Tenn [T]ex Va Vt [W]ash Wisc? Wyo
        Inc Cos? Corp Pp?t[ye]s? Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys tel est ext sq
        Jr Sr Bros (?:Ed|Ph)\\.D Blvd Rd Esq etc al seq"""
    )
)
_BEFORE_NAMES = _nocase(
    _any(
        """Mr Mrs Ms [M]iss Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt
        Cpl Pvt Capt Ste? Ave Pres Lieut Hon Brig Co?mdr Pfc Spc Supts? Det Mt Ft Adj Adv Asst
        Assoc Ens Insp Mlle Mme Msgr Sfc vs Alex Wm Jos Cie a\\.k\\.a cf TREAS Ph
        Invt Elec Natl M[ft]g Dept"""
    )
)
_BEFORE_NUMBERS = _nocase(_any("Nos? Prop Figs? pp? Arts? ca op"))
# After an acronym these begin a sentence.
_OPENERS = _nocase(
    _any(
        """[A]bout [A]ccording [A]dditionally [A]fter [A]n [A] [A]s [A]t [B]ut [E]arlier [H]e [H]er
        [H]ere [H]owever [I]f [I]n [I]t [L]ast [M]any [M]ore [M]r\\. [M]s\\. [N]ow [O]nce [O]ne
        [O]ther [O]ur [S]he [S]ince [S]ome [S]uch [S]o [T]hat [T]heir [T]here [T]hen [T]hese [T]hey
        [T]he [T]his [W]e [W]hen [W]hile [W]hat [Y]et [Y]ou"""
    )
)

_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_CURRENCIES = {"¢": "cents", "£": "#", "\u0080": "$", "¤": "$", "₠": "$", "€": "$"}


def _quotes(opening: bool) -> Callable[[str], tuple[str, ...]]:
    """Quotes as in LaTeX: `` and '', ` and '."""
    table = dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
    table |= dict.fromkeys("\u0092\u2019\u203a", "'")
    table |= dict.fromkeys("\u0093\u201c\u00ab", "``") | dict.fromkeys("\u0094\u201d\u00bb", "''")
    table |= {"'": "`", '"': "``"} if opening else {"'": "'", '"': "''"}

    def write(text: str) -> tuple[str, ...]:
        plain = text.replace("&apos;", "'").replace("&quot;", '"')
        return ("".join(table.get(character, character) for character in plain),)

    return write


def _without_soft_hyphens(text: str) -> tuple[str, ...]:
    return (text.replace("\u00ad", "") or "-",)


def _brackets(text: str) -> tuple[str, ...]:
    return (text.replace("(", "-LRB-").replace(")", "-RRB-").replace(" ", "\u00a0"),)


def _one_token(text: str) -> tuple[str, ...]:
    return (text.replace(" ", "\u00a0"),)


def _and(text: str) -> tuple[str, ...]:
    return (re.sub("(?i)&amp;", "&", text),)


def _written(table: dict[str, str]) -> Callable[[str], tuple[str, ...]]:
    return lambda text: (table.get(text, text),)


def _always(token: str) -> Callable[[str], tuple[str, ...]]:
    return lambda _: (token,)


def _cut(letters: int) -> Callable[[str], tuple[str, ...]]:
    return lambda text: (text[:-letters], text[-letters:])


def _sentence_final(text: str) -> tuple[str, ...]:
    """The full stop of an abbreviation that ends a sentence is there twice; of one letter, once."""
    return (text[:-1] if len(text) == 2 else text, ".")


def _table() -> tuple[Rule, ...]:
    rules: list[Rule] = []

    def add(token: str, write: Callable | None = None, *, before: str = "") -> None:
        pattern = re.compile(f"({token}){before}")
        rules.append(Rule(pattern, write) if write else Rule(pattern))

    add(_nocase("cannot"), _cut(3))
    add(r"[cC]\+\+|[cCfF]#")
    add(_nocase("(?:gonna|gotta|lemme|gimme|wanna)"), _cut(2))
    add("'[tT]", before=_nocase("(?:is|was)"))
    add(_SGML, _one_token)
    add("&(?:MD|mdash|ndash);|[\u0096\u0097\u2013\u2014\u2015]", _always("--"))
    add("&amp;", _and)
    add(_nocase("&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"))
    add(_WORD, _without_soft_hyphens, before=_AUX)
    add("[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _without_soft_hyphens, before=_NOT)
    add(_WORD, _without_soft_hyphens)
    for word in (
        rf"{_APOS}n{_APOS}?",
        rf"[lLdDjJ]{_APOS}",
        rf"Dunkin{_APOS}",
        rf"somethin{_APOS}",
        rf"ol{_APOS}",
        rf"{_APOS}em",
        rf"[A-HJ-XZn]{_APOS_LIKE}{_L}{{2}}{_L}*",
        rf"{_APOS}[2-9]0s",
        rf"{_APOS}till?",
        rf"{_L}{_L}*[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z]{_L}*",
        rf"{_APOS}cause",
        r"cont'd\.?",
        "'twas",
        "nor'easter",
        "c'mon",
        "e'er",
        "s'mores",
        "ev'ry",
        "li'l",
        "nat'l",
    ):
        add(_nocase(word))
    add(_nocase(f"y{_APOS}"), before=_L)
    address = r"""[^ \t\n\f\r\"<>|.!?(){},]"""
    tail = r"""(?:/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-])?"""
    add(_nocase("https?") + r"""://[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-]""")
    add(rf"[wW][wW][wW]\.(?:{address}+\.)+[a-zA-Z]{{2,4}}{tail}")
    # The range from the comma to the underscore is the program's, and takes digits and capitals.
    host = r"""[^ \t\n\f\r\"`'<>|.!?(){},-_$]"""
    add(rf"(?:{host}+\.)+{_nocase('(?:com|net|org|edu)')}{tail}")
    name, domain = r"""[^ \t\n\f\r\"<>|()\u00A0]""", r"""[^ \t\n\f\r\"<>|().\u00A0]"""
    add(rf"(?:&lt;|<)?[a-zA-Z0-9]{name}*@(?:{domain}+\.)*{domain}+(?:&gt;|>)?")
    add(rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{_L}+")
    add(_AUX, _quotes(opening=False), before="[^A-Za-z]")
    add(_NOT, _quotes(opening=False))
    add(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}")
    add(rf"[-+]?{_NUM}", _without_soft_hyphens)
    add(r"\d+(?:\.\d+)*\.[xX]", before="[ \t\r\n.,]")
    add("[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)")
    add(r"(?:\d{1,4}[- \u00A0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", _one_token)
    add("[\u00bc\u00bd\u00be\u2153-\u215e]", _written(_FRACTIONS))
    add(
        _nocase(r"-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-")
        + _nocase(rf"|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls|Cap{_APOS}n|c{_APOS}est"),
        _and,
    )
    add(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}")
    add(r"[A-Z]*\$|#")
    add(
        "[\u00a2\u00a3\u00a4\u00a5\u0080\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
        _written(_CURRENCIES),
    )
    acronym = rf"(?:{_ACRO}|[A-Za-z])\."
    add(acronym, _sentence_final, before=rf"{_END}+{_OPENERS}{_END}")
    add(rf"{_OFTEN_LAST}\.", _sentence_final, before=_SENTENCE_END)
    add(rf"{_OFTEN_LAST}\.")
    add(rf"(?:{_ACRO}|{_BEFORE_NAMES}|[A-Za-z])\.")
    add(rf"(?:{_ACRO}|{_BEFORE_NAMES}|[A-Za-z])", before=_SPACE)
    add(rf"{_BEFORE_NUMBERS}\.", before=rf"{_END}?\d")
    add(_ACRO, before=_END)
    add(rf"{_APOS}[0-9][0-9]", before=_END)
    add(rf"{_WORD}\.", _without_soft_hyphens, before=_IN_SENTENCE)
    add(r"\([0-9]{2,3}\)[ \u00A0]?[0-9]{3,4}[- \u00A0]?[0-9]{3,5}", _brackets)
    add(
        r"(?:\+\+?)?(?:[0-9]{2,4}[- \u00A0])?[0-9]{2,4}[- \u00A0][0-9]{3,4}[- \u00A0]?[0-9]{3,5}",
        _brackets,
    )
    add(r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}", _brackets)
    add('"|&quot;', _quotes(opening=True), before="[A-Za-z0-9$]")
    add('"|&quot;', _quotes(opening=False))
    add(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", _brackets, before="[^A-Za-z0-9]")
    add(r"[\^x=~<>]\.\[\^x=~<>]|[-^x=~<>']_[-^x=~<>']", _brackets)
    add(r"\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", _brackets)
    for bracket, name in zip("()[]{}", ("LRB", "RRB", "LSB", "RSB", "LCB", "RCB"), strict=True):
        add(re.escape(bracket), _always(f"-{name}-"))
    add("<|>")
    add("&lt;", _always("<"))
    add("&gt;", _always(">"))
    add("-+", lambda text: ("--" if 3 <= len(text) <= 4 else text,))
    add("\\.{3,5}|(?:\\.[ \u00a0]){2,4}\\.|[\u0085\u2026]", _always("..."))
    add(r"@+|#+|_+")
    add(r"\*+|(?:\\\*){1,3}")
    add(_IN_SENTENCE)
    add("[?!]+")
    add("[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]")
    add("=")
    add("/")
    thing = rf"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-(?:{_ACRO}\.|[A-Za-z0-9\u00AD]+))+"
    add(rf"{thing}\.", _without_soft_hyphens, before=_IN_SENTENCE)
    add(thing, _without_soft_hyphens)
    lead = rf"(?:[dDoOlL]{_APOS_LIKE}{_AD})?"
    thing = rf"{lead}{_AD}+(?:{_HYPHEN}{lead}{_AD}+)*"
    add(rf"{thing}\.", before=_IN_SENTENCE)
    add(thing)
    thing = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
    add(rf"{thing}\.", _and, before=_IN_SENTENCE)
    add(thing, _and)
    add("'", _quotes(opening=True), before="[A-Za-z][^ \\t\\n\\r\\u00A0]")
    add(_AUX, _quotes(opening=False))
    add(f"''|{_APOS}", _quotes(opening=False))
    add(
        "[`\u2018\u2019\u201a\u201b\u201c\u201d\u0091\u0092\u0093\u0094\u201e\u201f\u2039\u203a"
        "\u00ab\u00bb]{1,2}",
        _quotes(opening=False),
    )
    add("<<|>>")
    add(
        "[+%&~^|\\\\¦\u00a7¨\u00a9\u00ac\u00ae¯\u00b0-\u00ba\u00d7\u00f7\u0387\u05be\u05c0\u05c3"
        "\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c\u0614\u061b\u061e\u066a\u066d"
        "\u0703-\u070d\u07f6-\u07f8\u0964\u0965\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038"
        "\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e\u2100-\u214f\u2190-\u21ff"
        "\u2200-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
    )
    return tuple(rules)


RULES = _table()
