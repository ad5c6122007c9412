"""The gateway: who may call what, and the Envoy configuration that makes it so."""
