"""The laboratory: architectures compared under one protocol, and the probes that tell them apart."""
