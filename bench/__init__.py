"""What a call costs: `make bench` puts the gateway beside nginx under the same load."""
