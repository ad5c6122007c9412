"""Networks in PyTorch, on the CPU. For the process of a job only: the import takes seconds."""
