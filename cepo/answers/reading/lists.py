"""How the tables of this package write lists of words."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text.

    Example:
        words("sin cos tan")  # ("sin", "cos", "tan")
    """
    return tuple(text.split())
