"""Final answers: where an answer stands in a response, and when two answers are equal.

Pure functions of text. A new kind of answer is one entry in `kinds` and one comparison; the verifier, the data checks
and the teacher's choice of r- all read it from here.
"""
