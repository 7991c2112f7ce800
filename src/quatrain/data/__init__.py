"""Text from files, pipes or Python's own library; token files; and the batches drawn from them."""
