"""The model registry: which versions exist, what they are made of, and which one is meant."""
