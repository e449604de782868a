# Which tensors of an adapter llama.cpp's graphs use: nothing for other modules.
