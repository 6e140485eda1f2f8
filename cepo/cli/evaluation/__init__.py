"""`cepo eval`: pass@k of the base model and of any version of the policy, with intervals and a plot."""
