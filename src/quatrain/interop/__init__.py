"""Other people's modules and formats, both ways; each has a file of its own."""
