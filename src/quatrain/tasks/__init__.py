"""Where model and data meet: the shape that data asks of a model, scores, and what is trivial."""
