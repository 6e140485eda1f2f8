"""The verifier: a rule-based verdict for every completion of a group."""
