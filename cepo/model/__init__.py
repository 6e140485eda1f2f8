"""The forward pass of the language model over shared prefixes, and LoRA.

The teacher and the learner use it. Each optimisation has an equality test against plain transformers or PEFT.
"""
