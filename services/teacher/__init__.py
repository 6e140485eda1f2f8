"""The teacher service: measures the log-probs of sampled tokens under the contexts that a task asks for."""
