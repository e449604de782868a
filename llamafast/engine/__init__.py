"""Who runs, and what is kept: Plans to Generations, one thread for each model. No text formats, no HTTP."""
