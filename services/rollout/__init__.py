"""The rollout service: samples a group of responses for each prompt with the policy that the task names."""
