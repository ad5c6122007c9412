"""Servery's client: the SDK, the generated stubs and the `servery` command."""
