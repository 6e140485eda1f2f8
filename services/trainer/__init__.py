"""Feeds tasks, collects groups, computes the advantages, updates the adapter and publishes it."""
