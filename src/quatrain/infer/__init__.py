"""Running a trained model: sampling, streaming generation, scoring."""
