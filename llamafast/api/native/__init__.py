"""The room of /completion, /infill and /props, llama-server's own API, which editors speak."""
