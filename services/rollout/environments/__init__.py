"""Environments: what answers the policy's turns in a trajectory of several turns, in processes or behind URLs.

`docs/environments.md` says how to write one.
"""
