"""The teacher's stage: its handler and the scorer that the handler asks."""
