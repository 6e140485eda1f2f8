"""Problems from data sets: reading rows, finding columns, and the audit of reference answers.

Rows in, `Problem`s out. The launcher reads a data set once and writes its problems into the run folder (`stored`).
"""
