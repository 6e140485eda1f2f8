"""Measures the sampled tokens' log-probs under the contexts a task asks for."""
