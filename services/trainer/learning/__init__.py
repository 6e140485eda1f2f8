"""The model being trained: batches, the learner's update, and the processes that share the work.

`batch` turns groups into tensors, `splits` cuts them into mini-batches, shares and micro-batches, `learner` owns the
weights and the optimizer, `update` holds what a step's update reads and measures, `context` makes the model's passes,
`ranks` holds the collectives and `processes` starts the ranks. Nothing here reads a data set, publishes a task or saves
a checkpoint.
"""
