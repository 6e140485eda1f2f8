"""Samples G responses per prompt with the policy a task names."""
