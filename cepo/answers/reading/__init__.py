"""How one answer string is read into one typed value, wholly or not at all.

Each module reads one type: numerals, units, clock times and dates, expressions. A reader returns None as soon as a part
of the text is left over, so no value comes out of the middle of an answer.
"""
