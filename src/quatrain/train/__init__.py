"""Training a language model: configuration, optimiser, and a loop that resumes bit for bit."""
