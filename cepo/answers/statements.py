"""Finds the answer that a response states in words, without a mark: `So the answer is (B).`

A statement counts if a cue introduces it (`the answer is`, `= 7`, `I choose B`) or if it is all that the last line
says. A line that lists the options, denies an answer or leaves a choice states none.
"""

from __future__ import annotations

import re

from cepo.answers.kinds import truth
from cepo.answers.marks import final_part
from cepo.answers.notation import normalise
from cepo.answers.sentences import first_statement, splits, takes_back, undelimited

MAX_TAIL_CHARACTERS = 2000
"""How many characters at the end of a response are searched for a statement."""
MAX_LEAD_CHARACTERS = 60
"""How much of a sentence before its cue is searched for a denial."""
MAX_LOOSE_WORDS = 4
"""Words that the last line may have beside formulas and digits if the reference is mathematics."""
_CUE = re.compile(
    r"\b(?:answers?|option|choice|respuesta|r\u00e9ponse|risposta|resposta|antwort)"
    r"(?:\s+(?:is|are|would be|must be|should be|equals|es|est|ist|\u00e8|\u00e9)\b"
    r"(?:\s+(?:indeed|clearly|then|thus|therefore|hence|simply|actually)\b,?)?"
    r"|\s*[\"*_]*\s*[:\uff1a=]|\s+[-\u2013](?=\s))[*_]*:?"
    r"|\u7b54\u6848[\u662f\u4e3a]?[:\uff1a]?|\b(?:go with|choose|pick|select)(?: option| answer)?(?=\s+\(?[A-Z]\b)",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:wrong|incorrect|false|untrue|worst|unlikely|least \w+|previous|first|initial|original|old|earlier|other"
    r"|another|possible|likely wrong|neither|no)"
    r"|(?:\b(?:not|false|untrue|wrong|incorrect|doubt|deny|suppose|assume|imagine|if|whether|unlikely|impossible"
    r"|says|said|claims?|claimed)|n't)(?: \w+){0,2}? (?:that )?(?:the|my|our|this|your))\s+$"
    r"|\b(?:suppose|assume|imagine|if|whether|doubt)(?: that)?\s+$",
    re.IGNORECASE,
)
"""What turns a statement around or leaves it open if it stands before the cue: `It is false that the` answer is 5."""
_NAMED = re.compile(r"\b(?i:option|choice|answer|or|and|over|than)\s+\(?([A-J])\b\)?")
_ANSWER = re.compile(r"\b(?:answer|guess|option|choice)\b", re.IGNORECASE)
_IS_ANSWER = re.compile(r"[ \t](?:is|are) the (?:(?:correct|right|final) )?(?:answer|option|choice)\b", re.IGNORECASE)
_LEAD = re.compile(
    r"(?:(?:(?:so|thus|hence|therefore),? there (?:is|are)|so|thus|hence|therefore|then|finally|now|in total"
    r"|altogether|we (?:get|have|find|obtain)"
    r"|this (?:gives|is|yields)"
    r"|that is|i think|it(?:'s| is)|the (?:statement|claim) is|i'd say|i would say)\b[,:]?\s*)+|=\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?<![^\W_])\(?([A-Z])(?=[).:,]|\s*$)(?![^\W_])")
_OPTION_LINE = re.compile(r"^[ \t*]*\(?[A-Z][).:][ \t]*\S", re.MULTILINE)
_ENDS_IN_LABEL = re.compile(r"(?:^|\b(?:thus|so|hence|therefore|is|be|choose|option|answer)\b[ :,]*)\(?([A-Z])\)?\W*$")
_ENDS_IN_TRUTH = re.compile(
    r"(?:^|\b(?:thus|so|hence|therefore|think|say)\b[ :,]*)(yes|no|true|false)\W*$", re.IGNORECASE
)
_DENIAL = re.compile(r"\b(?:or|not|cannot|never|neither|nor|wrong|incorrect)\b|n't\b", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:page|question|problem|step|case|part|section|exercise) \d+\W*$", re.IGNORECASE)
_LOOSE_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_BLOCK = re.compile(r"(?:\\\[|\$\$)\s*(.+?)\s*(?:\\\]|\$\$)\W*$", re.DOTALL)
_CODE = re.compile(r"\n?```\w*\n?")


def stated(response: str, kind: str) -> str | None:
    """The answer that a response states without a mark; None if it states none.

    Args:
        kind: the name of the reference's kind.
    """
    text = _CODE.sub("\n", final_part(response)[-MAX_TAIL_CHARACTERS:]).strip()
    answer = _introduced(text)
    if answer is None:
        answer = _alone(text, kind)
    answer = _settled(answer, kind).encode("utf-8", "replace").decode("utf-8") if answer else ""
    return answer if normalise(answer) else None


def _introduced(text: str) -> str | None:
    """What the last cue introduces unless the text after it takes that back; empty if the text before it denies it."""
    cues = [(cue.start(), cue.end()) for cue in _CUE.finditer(text)]
    cues += [(text.rfind("\n", 0, said.start()) + 1,) * 2 for said in _IS_ANSWER.finditer(text)]
    if not cues:
        return None
    start, end = max(cues)
    if _is_denied(text, start):
        return ""
    content, _, rest = text[end:].lstrip(" \t*_:").partition("\n")
    if not content.strip("*_: "):
        content, _, rest = rest.lstrip().partition("\n")
    if content.strip() in ("$$", "\\["):
        block = _BLOCK.match(text[end:].lstrip(" \t*_:\n"))
        return first_statement(block[1]) if block else None
    if content.strip(' "}') and text[:end].endswith(('"', '":')):
        content = content.strip(' ",}')
    if said := _IS_ANSWER.search(content):
        content = _last_sentence(content[: said.end()])
        if lead := _LEAD.match(content):
            content = content[lead.end() :]
    return None if takes_back(rest) else first_statement(content)


def _is_denied(text: str, at: int) -> bool:
    return _DENIED_BEFORE.search(text, max(0, at - MAX_LEAD_CHARACTERS), at) is not None


def _alone(text: str, kind: str) -> str | None:
    """The answer that is all the last line says."""
    if block := _BLOCK.search(text):
        return first_statement(block[1])
    line = text.rpartition("\n")[2].strip()
    if (
        "?" in line
        or _NUMBERED.match(line)
        or any(_is_denied(line, answer.start()) for answer in _ANSWER.finditer(line))
    ):
        return None
    lead = _LEAD.match(line)
    said = line[lead.end() :] if lead else line
    if kind == "choice":
        return _label(text, line, first_statement(said))
    if kind == "yesno":
        ending = _ENDS_IN_TRUTH.search(line)
        return ending[1] if ending and not _DENIAL.search(line) else said
    if not lead and len(ends := splits(line)) and _LEAD.match(line[ends[-1] :].strip()):
        line = line[ends[-1] :].strip()
        lead = _LEAD.match(line)
        said = line[lead.end() :] if lead else line
    answer = first_statement(said)
    loose = _LOOSE_WORD.findall(re.sub(r"\\text\w*\{[^{}]*\}|\$[^$]*\$", "", answer))
    allowed = MAX_LOOSE_WORDS if re.search(r"[\d\\$]", answer) else 2
    return answer if kind == "text" or len(loose) <= allowed else None


def _label(text: str, line: str, said: str) -> str | None:
    if re.fullmatch(r"\W*\(?[A-Za-z]\)?\W*", said):
        return said
    labels = {*_LABEL.findall(line), *_NAMED.findall(line)}
    if not _LABEL.search(line) or len(labels) != 1 or _DENIAL.search(line) or len(_OPTION_LINE.findall(text)) > 1:
        return None
    if _OPTION_LINE.match(line):
        return line
    ending = _ENDS_IN_LABEL.search(line)
    return ending[1] if ending else None


def _last_sentence(text: str) -> str:
    ends = splits(text)
    return text[ends[-1] :] if ends else text


def _settled(answer: str, kind: str) -> str:
    """A stated answer without an exclamation mark and without dollar signs; the label or the truth alone."""
    answer = undelimited(first_statement(answer.rstrip("!")))
    if kind == "choice" and (label := re.fullmatch(r"\(?([A-Za-z])\)?", answer)):
        return label[1]
    if (
        kind == "yesno"
        and truth(answer) is not None
        and (word := re.search(r"yes|no|true|false", answer, re.IGNORECASE))
    ):
        return word[0]
    return answer
