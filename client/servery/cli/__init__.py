"""The `servery` command."""
