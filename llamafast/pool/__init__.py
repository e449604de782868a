"""Several models behind one address: a thin parent, and a child process for each model that is loaded."""
