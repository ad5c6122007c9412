"""The trainer: takes data and training jobs, makes proven model versions."""
