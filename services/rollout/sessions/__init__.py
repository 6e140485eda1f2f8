"""Sessions of agents: the turns that an agent samples over OpenAI's API, recorded as trajectories of a group."""
