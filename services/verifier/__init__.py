"""The verifier: gives every completion of a group a rule-based verdict and its reward.

Read `handler` first. `verdicts` extracts answers and decides what strings decide, `pool` and `worker` run the algebra
of `grader` and the user's reward `functions` in killable processes, `rewards` adds the terms of the reward.
"""
