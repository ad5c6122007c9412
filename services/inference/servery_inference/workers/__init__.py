"""Several processes behind one address, which answer as one server would."""
