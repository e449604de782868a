"""A small model that drafts for a larger one of the same vocabulary: two contexts over the same tokens.

Its memory is filled behind the served model's, a slice at a time, and goes by content: what it has of a sequence that
ended, was preempted or forked is lent to whoever begins alike and has the same salt. Drafted tokens stay in it and are
cut off once others came. A memory that cannot be cut has confirmed tokens only: what follows them is drafted in a copy.
"""
cimport cython
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

from .blocks cimport common_run
from .context cimport UNLIMITED, Context, context_decode
from .draft cimport MAX_DRAFT
from .headers.llama cimport (
    llama_batch_init, llama_memory_clear, llama_memory_seq_cp, llama_memory_seq_rm, llama_model_get_vocab, llama_n_ctx,
    llama_vocab_n_tokens,
)
from .leaks cimport DRAFT_MODEL, born, died
from .live cimport live_t
from .proposer cimport NEAR, RESTS, Proposer, proposer_row
from .sequence cimport sequence_t


@cython.no_gc_clear
cdef class DraftModel(Proposer):
    """Drafts by ``own``, a Context of the small model, for the sequences of ``target``: it needs as many sequence ids,
    twice as many where its memory cannot be cut. ``least`` is the probability below which a token is not drafted.
    Whoever makes it has compared the vocabularies: ``n_shared`` are the tokens that both have. ValueError for too few
    sequence ids or a context without memory.
    """

    def __cinit__(self, Context target not None, Context own not None, *, int32_t n_shared, float least):
        self.target = target
        self.model = own.model
        self.own = own
        self.ctx = own.ctx
        self.memory = own.memory
        self.least = least
        self.n_seq_max = <int32_t> target.n_seq_max
        self.cuttable = own.n_undo == UNLIMITED
        self.capacity = <int32_t> own.n_ubatch
        self.n_cells = <int32_t> llama_n_ctx(own.ctx)
        self.n_known = llama_vocab_n_tokens(llama_model_get_vocab(own.model.model))
        self.n_vocab = n_shared
        if own.memory == NULL or own.n_seq_max < self.n_seq_max * (1 if self.cuttable else 2):
            raise ValueError(f"a draft model with room for {own.n_seq_max} sequences: {self.n_seq_max} may run")
        if self.n_vocab > self.n_known:
            raise ValueError(f"{n_shared} tokens in common of {self.n_known}")
        self.held = <held_t *> calloc(<size_t> self.n_seq_max, sizeof(held_t))
        self.batch = llama_batch_init(self.capacity, 0, 1)
        if self.held == NULL:
            raise MemoryError
        self.n_free = self.n_cells
        born(DRAFT_MODEL)

    def __dealloc__(self):
        cdef int32_t i
        if self.held != NULL:
            died(DRAFT_MODEL)
            for i in range(self.n_seq_max):
                free(self.held[i].ids)
                free(self.held[i].salt)
        free(self.held)

    cdef int32_t behind(self, const sequence_t *s) noexcept nogil:
        cdef held_t *held
        cdef int32_t k, n = s.tokens.n_certain
        if self.resting or s.tokens.n_spans:
            return -1
        held = held_of(self, s)
        if held == NULL or held.barred:
            return -1
        if n - held.n_same > NEAR and borrow(self, s) < 0:
            # whoever has more of it by now lends it
            return -1
        if not self.cuttable and held.n > min(held.n_same, n - 1):
            return n
        k = min(held.n_same, n - 1)
        if n - k <= NEAR and not knows(self, s, k, n):
            held.barred = True
            return -1
        return n - k

    cdef void begin(self, sequence_t *s, int32_t room) noexcept nogil:
        cdef held_t *held = &self.held[s.seq_id]
        cdef int32_t n = s.tokens.n_certain, start = cut(self, s, min(held.n_same, n - 1))
        # who is near fits; a memory that was not cut all the same gives a bad draft, and is forgotten
        add(self, s, max(start, n - room), n, True)
        if n - start > room:
            held.n, held.n_same = -1, 0

    cdef void extend(self, sequence_t *s, int32_t row) noexcept nogil:
        cdef held_t *held = &self.held[s.seq_id]
        cdef int32_t n = s.draft.proposal.n, seq_id = s.seq_id
        cdef int32_t token = s.draft.proposal.tokens[n - 1]
        if not self.cuttable:
            seq_id += self.n_seq_max
            if n == 1:
                llama_memory_seq_cp(self.memory, s.seq_id, seq_id, -1, -1)
        elif held.n >= 0:
            held.ids[held.n] = token
            held.n += 1
        proposer_row(self, token, s.tokens.n_certain + n - 1, seq_id, True)

    cdef void end(self, sequence_t *s) noexcept nogil:
        if not self.cuttable:
            llama_memory_seq_rm(self.memory, s.seq_id + self.n_seq_max, -1, -1)

    cdef int32_t decode(self) noexcept nogil:
        cdef int32_t code = context_decode(self.own, &self.batch)
        if code != 0:
            # all memory is to be filled again: not soon
            self.resting = RESTS
        return code

    cdef void forget(self) noexcept nogil:
        cdef int32_t i
        llama_memory_clear(self.memory, False)
        for i in range(self.n_seq_max):
            self.held[i].n = self.held[i].n_same = self.held[i].n_runs = self.held[i].n_borrowed = 0

    cdef int32_t fill(self, const sequence_t *s, int32_t room) noexcept nogil:
        cdef held_t *held = &self.held[s.seq_id]
        cdef int32_t start, n
        start = cut(self, s, held.n_same)
        n = min(room, s.tokens.n_certain - 1 - start)
        if n <= 0:
            return 0
        if not knows(self, s, start, start + n):
            held.barred = True
            return 0
        return add(self, s, start, start + n, False)

    cdef void make_room(self, const live_t *live) noexcept nogil:
        cdef int32_t i
        cdef held_t *held
        cdef const sequence_t *s
        if self.resting:
            self.resting -= 1
        self.n_free = cells_free(self)
        if self.n_free >= min(self.capacity, self.n_cells // 4):
            return
        for i in range(self.n_seq_max):
            s = live.by_seq_id[i]
            held = &self.held[i]
            if held.n and (s == NULL or s.tag != held.tag or s.share.n_runs != held.n_runs):
                drop(self, i)
        self.n_free = cells_free(self)


cdef int32_t cells_free(DraftModel self) noexcept nogil:
    """About so many cells are not in use: those of a lender that are its own no more may count twice."""
    cdef int32_t i
    cdef int64_t used = 0
    for i in range(self.n_seq_max):
        used += max(0, self.held[i].n - self.held[i].n_borrowed)
    return <int32_t> max(0, self.n_cells - used)


cdef void drop(DraftModel self, int32_t seq_id) noexcept nogil:
    """Forget all that is under a sequence id."""
    cdef held_t *held = &self.held[seq_id]
    llama_memory_seq_rm(self.memory, seq_id, -1, -1)
    call_in(self, seq_id, 0)
    held.n = held.n_same = held.n_runs = held.n_borrowed = 0


cdef void call_in(DraftModel self, int32_t seq_id, int32_t n) noexcept nogil:
    """What a sequence id has lent beyond ``n`` cells is those others' alone."""
    cdef int32_t i
    for i in range(self.n_seq_max):
        if self.held[i].lender == seq_id and self.held[i].n_borrowed > n:
            self.held[i].n_borrowed = 0


cdef bint knows(DraftModel self, const sequence_t *s, int32_t start, int32_t stop) noexcept nogil:
    """Whether its vocabulary has these tokens of a sequence: llama.cpp refuses others."""
    cdef int32_t i
    for i in range(start, stop):
        if not 0 <= s.tokens.ids[i] < self.n_known:
            return False
    return True


cdef held_t *held_of(DraftModel self, const sequence_t *s) noexcept nogil:
    """What its memory has of a sequence, as far as that is known by now; NULL: there is no memory for notes."""
    cdef held_t *held = &self.held[s.seq_id]
    cdef int32_t most
    if held.tag != s.tag or held.n_runs != s.share.n_runs:
        if borrow(self, s) < 0:
            return NULL
        held.tag = s.tag
        held.n_runs = s.share.n_runs
        held.barred = False
    most = min(held.n, s.tokens.n_certain)
    if held.n_same < most:
        held.n_same += common_run(held.ids + held.n_same, s.tokens.ids + held.n_same, most - held.n_same)
    return held


cdef int borrow(DraftModel self, const sequence_t *s) noexcept nogil:
    """Let a sequence have the longest beginning of it that is in memory, its own or that of another one of its salt:
    0, or -1 where there is no memory for notes, and then it has nothing."""
    cdef held_t *held = &self.held[s.seq_id]
    cdef held_t *other
    cdef char *salt
    cdef int32_t i, n, best = -1, n_best = 0
    if held.tag == s.tag and held.n_runs == s.share.n_runs:
        best = s.seq_id
        n_best = held.n_same
    for i in range(self.n_seq_max):
        other = &self.held[i]
        # who has more of it has its next token: so all but few are not looked at from their beginning in each step
        if other.n <= n_best or n_best == s.tokens.n_certain or other.ids[n_best] != s.tokens.ids[n_best]:
            continue
        if other.n_salt != s.share.n_salt or memcmp(
            other.salt, s.share.salt, <size_t> other.n_salt
        ) != 0:
            continue
        n = common_run(other.ids, s.tokens.ids, min(other.n, s.tokens.n_certain))
        # a state that cannot be cut is lent whole
        if n > n_best and (self.cuttable or n == other.n):
            best = i
            n_best = n
    if best == s.seq_id:
        held.n_same = n_best
        return 0
    drop(self, s.seq_id)
    salt = <char *> realloc(held.salt, <size_t> s.share.n_salt + 1)
    if salt != NULL:
        held.salt = salt
    if salt == NULL or reserve(held, n_best) < 0:
        held.n_salt = 0
        return -1
    held.n_salt = s.share.n_salt
    held.tag = s.tag
    held.n_runs = s.share.n_runs
    memcpy(salt, s.share.salt, <size_t> held.n_salt)
    if best >= 0:
        llama_memory_seq_cp(
            self.memory, best, s.seq_id, 0 if self.cuttable else -1, n_best if self.cuttable else -1)
        memcpy(held.ids, self.held[best].ids, <size_t> n_best * sizeof(int32_t))
        held.n = held.n_same = n_best
        held.lender = best
        held.n_borrowed = n_best if self.cuttable else 0
    return 0


cdef int reserve(held_t *held, int32_t n) noexcept nogil:
    """Room for so many ids: 0, or -1 when out of memory."""
    cdef int32_t *grown
    if n <= held.capacity:
        return 0
    n = max(n, 2 * held.capacity)
    grown = <int32_t *> realloc(held.ids, <size_t> n * sizeof(int32_t))
    if grown == NULL:
        return -1
    held.ids = grown
    held.capacity = n
    return 0


cdef int32_t cut(DraftModel self, const sequence_t *s, int32_t n) noexcept nogil:
    """Keep the first ``n`` of a sequence's tokens in memory, which are its own, or none where these cannot be told from
    the others; how many there are."""
    cdef held_t *held = &self.held[s.seq_id]
    if held.n == n:
        return n
    if not self.cuttable or not llama_memory_seq_rm(self.memory, s.seq_id, n, -1):
        llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
        n = 0
    call_in(self, s.seq_id, n)
    held.n = held.n_same = n
    held.n_borrowed = min(held.n_borrowed, n)
    return n


cdef int32_t add(DraftModel self, const sequence_t *s, int32_t start, int32_t stop, bint output) noexcept nogil:
    """Add the rows of these tokens, the last one with logits where there is to be an ``output``; how many. Behind them
    there is room for a draft's ids."""
    cdef held_t *held = &self.held[s.seq_id]
    cdef int32_t k
    for k in range(start, stop):
        proposer_row(self, s.tokens.ids[k], k, s.seq_id, output and k == stop - 1)
    if reserve(held, stop + MAX_DRAFT) == 0:
        memcpy(held.ids + start, s.tokens.ids + start, <size_t> (stop - start) * sizeof(int32_t))
        held.n = held.n_same = stop
    else:
        # nobody knows what is there: it begins anew
        held.n, held.n_same = -1, 0
    return stop - start
