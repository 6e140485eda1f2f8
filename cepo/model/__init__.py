"""The language model: one forward pass over the prefixes that sequences share, and LoRA.

Both the teacher and the learner run it. Every optimisation here has an equality test against plain transformers.
"""
