# llama.h: the tokens by which a text is filled in, -1 where a vocabulary has none.
from .llama cimport llama_token, llama_vocab

cdef extern from "llama.h" nogil:
    llama_token llama_vocab_fim_pre(const llama_vocab *vocab)
    llama_token llama_vocab_fim_suf(const llama_vocab *vocab)
    llama_token llama_vocab_fim_mid(const llama_vocab *vocab)
    llama_token llama_vocab_fim_pad(const llama_vocab *vocab)
    llama_token llama_vocab_fim_rep(const llama_vocab *vocab)
    llama_token llama_vocab_fim_sep(const llama_vocab *vocab)
