"""A load client that asks a server over HTTP as its users do, and what its answers took: `llamafast bench`."""
