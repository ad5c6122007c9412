"""What every Servery server shares: errors on the wire, names, settings, lifecycle, telemetry."""
