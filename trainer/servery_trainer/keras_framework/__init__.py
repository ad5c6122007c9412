"""Networks in Keras on TensorFlow. For the process of a job only: the import takes seconds."""
