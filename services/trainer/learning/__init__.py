"""The model being trained: batches, the learner's update, and the processes that share the work.

`learner` owns the weights and the optimiser, `batch` turns groups into tensors, `ranks` holds the collectives. Nothing
here reads a data set, publishes a task or saves a checkpoint.
"""
