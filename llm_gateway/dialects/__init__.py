"""One module per family of endpoints: reads a request, rewrites it, bounds what it can cost."""
