"""From chat messages and images to the token ids that a model reads, and from token ids back to text spans.

The renderer is shared by rollout, teacher, trainer and the checks, so that all of them see the same ids.
"""
