"""One file for each method: its options, the evidence it asks for and its rule.

A method is a subclass of `cepo.algo.base.Algorithm`. To add one, write its file and name it in `cepo.algo.variants`;
no service changes.
"""
