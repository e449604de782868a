"""Where spans of requests go: a collector of OpenTelemetry."""
