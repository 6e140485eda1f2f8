"""Warms up the fork server, the process that workers are forked from. Only the fork server imports this module.

The algebra imports modules and builds tables on first use. They exist before a worker starts, so no item
waits for them.
"""

from __future__ import annotations

import gc

from cepo.answers.kinds import Kind
from services.verifier.grader import Comparison, compare

EXAMPLES = [
    ("x+2x", "3x"), ("x^2+2x+1", "(x+1)^2"), ("\\sqrt{8}", "2\\sqrt{2}"), ("(1,\\frac{4}{2})", "(1,2.0)"),
    ("[1,2)", "(1,2]"), ("\\{1,x\\}", "\\{x,2\\}"), ("x=5", "5"), ("x<3", "x<4"), ("2^{5}+\\pi", "e"),
    ("\\sin(x)", "\\cos(x)"), ("3+4i", "4i"), ("\\int_0^1 x dx", "\\frac{1}{3}"), ("\\sum_{n=1}^{3} n", "7"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"), ("y=x+1", "y=x+2"),
    ("\\frac{x}{y}", "\\frac{y}{x}"), ("60x", "59x"),
]  # fmt: skip

for answer, reference in EXAMPLES:
    compare(Comparison(answer, reference, Kind("math", unevaluated=True)))
gc.collect()
gc.freeze()  # forked workers keep sharing these pages
