"""Chat messages and images to the token ids that a model reads, and token ids to spans of text.

Rollout, teacher, trainer and preflight checks share the renderer, so that all of them have the same token ids.
"""
