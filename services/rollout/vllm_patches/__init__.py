"""Everything that depends on private names of vLLM, so that one folder has to be read when vLLM changes.

The rollout engine itself uses vLLM's public interface. Each patch says which vLLM version it was written against and
what is lost without it.
"""
