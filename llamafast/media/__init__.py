"""Pictures, sound and video of requests: where their bytes come from, and what of them is taken."""
