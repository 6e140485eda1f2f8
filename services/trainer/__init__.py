"""The trainer: publishes tasks, collects their groups, computes advantages, updates the adapter and publishes it.

`loop` is the paper's Algorithm 1. `pipeline` says which policy each step samples from, `feeder` and `pairs` make the
tasks, `collector` waits for the groups, `learning` updates the model, `publisher` and `teacher` publish versions of the
adapter, `checkpoint` saves the run, and `report` and `status` write its metrics and its state.
"""
