r"""Removes what changes the look of LaTeX and not its value: colours, fonts, sizes, spacing, redundant delimiters."""

from __future__ import annotations

import re

from cepo.answers.reading.lists import words

_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|[{}]|[^\\{}]+", re.DOTALL)
_TEXT = frozenset(
    words(
        "\\text \\textbf \\textit \\textrm \\textsf \\texttt \\textnormal \\textup \\emph \\mbox "
        "\\hbox \\mathrm \\mathsf "
        "\\mathit \\mathtt \\operatorname \\operatorname* \\textsc \\mathup"
    )
)
_FONTS = frozenset(
    words(
        "\\mathbf \\boldsymbol \\bm \\pmb \\bold \\underline \\ensuremath \\mathnormal \\mathcal \\mathscr \\mathfrak "
        "\\boxed \\fbox \\framebox \\mathop \\mathord \\uline \\symbf \\mathbfit"
    )
)
_COLOURS = frozenset(["\\color", "\\textcolor", "\\colorbox", "\\mathcolor"])
_DROPPED_ARGUMENT = frozenset(words("\\hspace \\vspace \\hspace* \\phantom \\hphantom \\vphantom \\label \\tag"))
_DROPPED = frozenset(
    words(
        "\\left \\right \\displaystyle \\textstyle \\scriptstyle \\limits \\nolimits \\tiny \\small "
        "\\normalsize \\large "
        "\\Large \\LARGE \\huge \\Huge \\bf \\it \\rm \\sf \\tt \\bfseries \\itshape \\rmfamily "
        "\\big \\Big \\bigg \\Bigg "
        "\\bigl \\bigr \\Bigl \\Bigr \\biggl \\biggr \\Biggl \\Biggr \\bigm \\middle \\! \\noindent \\centering "
        "\\unboldmath \\boldmath \\strut \\allowbreak \\nobreak"
    )
)
_BLANKS = frozenset(
    ("\\,", "\\;", "\\:", "\\ ", "\\quad", "\\qquad", "\\>", "\\thinspace", "\\enspace", "\\nobreakspace", "\\hfill")
)
_RENAMED = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\dbinom": "\\binom", "\\tbinom": "\\binom",
    "\\varnothing": "\\emptyset", "\\infin": "\\infty", "\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne",
    "\\leqslant": "\\le", "\\geqslant": "\\ge", "\\lt": "<", "\\gt": ">", "\\%": "%", "\\$": "$", "\\#": "#",
    "\\&": "&", "\\_": "_", "\\degree": "\u00b0", "\\textdegree": "\u00b0", "\\dots": "\\ldots", "\\lbrace": "\\{",
    "\\rbrace": "\\}", "\\lbrack": "[", "\\rbrack": "]", "\\lparen": "(", "\\rparen": ")", "\\colon": ":",
    "\\textpercent": "%", "\\textdollar": "$", "\\pounds": "\u00a3", "\\euro": "\u20ac", "\\yen": "\u00a5",
    "\\times": "\\times", "\\mid": "\\mid", "\\rightarrow": "\\to", "\\longrightarrow": "\\to", "\\dotsc": "\\ldots",
}  # fmt: skip
_DEGREES = re.compile(r"(?:(?<!\\) )*\^ *(?:\\circ(?![a-zA-Z])|\{ *\\circ *\})")
_PRIMES = re.compile(r"(?:(?<!\\) )*\^ *(?:\{ *((?:\\prime *)+)\}|(\\prime)(?![a-zA-Z]))")
_SIUNITX = re.compile(r"\\(?:SI|qty)\{([^{}]*)\}\{([^{}]*)\}|\\(?:unit|si|num)\{([^{}]*)\}")
_LETTER = re.compile(r"[a-zA-Z]")
TEXT = "\\text{"
"""What begins words inside mathematics in the output of `undecorated`."""


def undecorated(text: str) -> str:
    r"""LaTeX in one spelling: text-like commands become `\text{...}`, and colours, fonts and sizes go.

    Example:
        undecorated("\\color{red}{\\dfrac{1}{2}}\\,\\mathrm{cm}")  # "\\frac{1}{2} \\text{cm}"
    """
    if "\\" not in text and "{" not in text:
        return text.replace("~", " ") if "~" in text else text
    text = _SIUNITX.sub(lambda unit: f"{unit[1]}\\text{{ {unit[2]}}}" if unit[1] else f"\\text{{{unit[3]}}}", text)
    text = _DEGREES.sub("\u00b0", text)
    text = _PRIMES.sub(lambda primes: "'" * primes[0].count("prime"), text)
    out: list[str] = []
    closers: list[str] = []
    tokens = _TOKEN.findall(text)
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token in _COLOURS or token in _DROPPED_ARGUMENT:
            position = _after_group(tokens, position)
            if token in _COLOURS and position < len(tokens) and tokens[position] == "{":
                position = _opened(out, closers, "", position)
        elif token in _FONTS and tokens[position : position + 1] == ["{"]:
            position = _opened(out, closers, "", position)
        elif token in _TEXT and tokens[position : position + 1] == ["{"]:
            position = _opened(out, closers, _text_opening(token, tokens, position), position)
        elif token == "{":
            closers.append("}")
            out.append("{")
        elif token == "}":
            out.append(closers.pop() if closers else "}")
        else:
            out.append(_command(token, tokens[position] if position < len(tokens) else ""))
    return "".join(out).strip()


def _opened(out: list[str], closers: list[str], opening: str, position: int) -> int:
    """Opens a group whose braces go, unless an operator needs them; returns the position after its brace."""
    last = next((piece for piece in reversed(out) if piece.strip()), "")
    keeps = not opening and (last[-1:] in ("^", "_") or (last.startswith("\\") and last[1:].isalpha()))
    out.append("{" if keeps else opening)
    closers.append("}" if keeps or opening.endswith("{") else "")
    return position + 1


def _text_opening(command: str, tokens: list[str], position: int) -> str:
    r"""`\text{` before words; a function's backslash before its name; nothing before digits and constants."""
    content = tokens[position + 1].strip() if position + 1 < len(tokens) else ""
    closed = tokens[position + 2 : position + 3] == ["}"]
    if closed and command.startswith("\\operatorname") and content.isalpha():
        return "\\"
    if closed and command.startswith("\\math") and content in ("e", "i", "d"):
        return ""
    return TEXT if not closed or _LETTER.search(content) or not content.isascii() or not content else ""


def _after_group(tokens: list[str], position: int) -> int:
    """The position after the group that opens at a position; the position itself if none opens."""
    if tokens[position : position + 1] != ["{"]:
        return position
    depth = 0
    for index in range(position, len(tokens)):
        depth += {"{": 1, "}": -1}.get(tokens[index], 0)
        if depth == 0:
            return index + 1
    return len(tokens)


def _command(token: str, following: str) -> str:
    if token in _DROPPED:
        return " " if _LETTER.match(following) and token not in ("\\!", "\\left", "\\right") else ""
    if token in _BLANKS:
        return " "
    renamed = _RENAMED.get(token)
    if renamed is None:
        return token.replace("~", " ") if token[0] != "\\" else token
    return renamed + " " if renamed[-1:].isalpha() and not token[-1:].isalpha() else renamed
