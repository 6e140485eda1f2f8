"""Structured answers: how a text is read into lists, sets, intervals, matrices and relations, and how these compare.

Read `reading` first. `splitting` cuts a text at its top-level separators, `types` holds what the reader returns,
`relations` and `intervals` read equations and inequalities, and `comparing` compares two readings element by element.
"""
