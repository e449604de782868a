"""Which prefixes have a saved state: a radix tree of tokens.

A node hangs where its tokens leave those of another, so a look-up reads each token of a prompt once, however many
prompts are stored, and it compares tokens, not hashes of them. States lie in the tree at the position where they end.
"""
cimport cython
from cpython.array cimport array
from libc.stdint cimport int32_t, int64_t, uint32_t

from .blocks cimport common_run


@cython.trashcan(True)
cdef class Node:
    """Tokens from ``start`` on that no other node has.

    ``children`` are keyed by the position where they leave this node and their first token, ``states`` sorted by where
    they end.
    """

    def __cinit__(self, Node parent, object key, int32_t start, array tokens not None):
        self.parent = parent
        self.key = key
        self.start = start
        self.tokens = tokens
        self.children = {}
        self.states = []


@cython.trashcan(True)
cdef class State:
    """The saved state of a sequence's tokens [start, stop), which continues ``base``; ``n_heirs`` continue this one.

    ``saved`` is None while its bytes are not in memory. ``spares`` is how many tokens need not be computed thanks to
    it, ``n_bytes`` what it takes. ``n_heirs``, ``uses``, ``priority``, ``waits`` (among those that may be evicted) and
    ``entry`` are kept by whoever decides what stays.
    """

    def __cinit__(self, object saved, State base, int32_t start, int32_t stop, *, int32_t spares, int64_t n_bytes):
        self.saved = saved
        self.base = base
        self.start = start
        self.stop = stop
        self.spares = spares
        self.n_bytes = n_bytes
        self.uses = 1

    def fill(self, object saved not None):
        """Its bytes are in memory from now on."""
        if self.saved is not None:
            raise ValueError("a state whose bytes are there")
        self.saved = saved
        self.n_bytes += len(saved)

    def empty(self):
        """Its bytes are in memory no more; how many that were."""
        cdef Py_ssize_t n_bytes = len(self.saved)
        self.saved = None
        self.n_bytes -= n_bytes
        return n_bytes

    @property
    def kept(self):
        """Whether it lies in a tree."""
        return self.node is not None

    @property
    def is_last(self):
        """Whether no other tokens leave or continue those of its node."""
        return self.node is not None and not self.node.children


cdef class PrefixTree:
    """States by the tokens they follow, apart by salt. Tokens are arrays of int32."""

    def __cinit__(self):
        self.roots = {}

    @property
    def empty(self):
        return not self.roots

    def find(self, array tokens not None, bytes salt not None, int32_t length, int32_t n_cuttable):
        """The state that gives most of the first ``length`` tokens and how much, (None, 0) where none does.

        One that ends beyond what the tokens have in common with it is cut, which only those of up to ``n_cuttable``
        tokens can be.
        """
        cdef int32_t end = 0
        cdef Py_ssize_t i
        cdef State state, shorter, longer
        cdef Node node
        if not 0 <= length <= len(tokens):
            raise ValueError(f"the first {length} of {len(tokens)} tokens")
        node = self.descend(tokens, salt, length, &end)
        while node is not None:
            shorter = longer = None
            for i in range(len(node.states) - 1, -1, -1):
                state = <State> node.states[i]
                if state.stop <= end:
                    shorter = state
                    break
                if state.stop <= n_cuttable:
                    longer = state
            if longer is not None:
                while longer.start >= end and longer.base is not None:
                    longer = longer.base
                return longer, end
            if shorter is not None:
                return shorter, shorter.stop
            end = node.start
            node = node.parent
        return None, 0

    def ending(self, array tokens not None, bytes salt not None):
        """The state that ends with the last of ``tokens``, None where none does."""
        cdef int32_t end = 0, n_tokens = <int32_t> len(tokens)
        cdef State state
        cdef Node node = self.descend(tokens, salt, n_tokens, &end)
        if node is not None and end == n_tokens:
            for state in node.states:
                if state.stop == n_tokens:
                    return state
        return None

    def tokens(self, State state not None):
        """Those that lead to a state that is kept, and the salt."""
        cdef Node node = state.node
        cdef array path
        if node is None:
            raise ValueError("a state that is not kept")
        path = node.tokens[: state.stop - node.start]
        while node.parent is not None:
            path = node.parent.tokens[: node.start - node.parent.start] + path
            node = node.parent
        return path, node.key

    def salts(self):
        """Those that a state is kept of."""
        return list(self.roots)

    def below(self, bytes salt not None):
        """All states of a salt that are kept."""
        cdef Node node
        cdef list nodes = [self.roots[salt]] if salt in self.roots else [], found = []
        while nodes:
            node = <Node> nodes.pop()
            found += node.states
            nodes += node.children.values()
        return found

    def add(self, array tokens not None, bytes salt not None, State state not None):
        """Keep a state that ends with ``tokens``, where none ends yet."""
        cdef int32_t end = 0, n_tokens = <int32_t> len(tokens)
        cdef Py_ssize_t place
        cdef Node node = self.descend(tokens, salt, n_tokens, &end)
        cdef Node child
        if state.stop != n_tokens or state.node is not None:
            raise ValueError(f"a state of {state.stop} tokens for {n_tokens} tokens")
        if node is None:
            node = self.roots[salt] = Node(None, salt, 0, tokens[:0])
        if end < n_tokens:
            child = Node(node, child_key(end, tokens.data.as_ints[end]), end, tokens[end:])
            node.children[child.key] = child
            node = child
        place = len(node.states)
        while place and (<State> node.states[place - 1]).stop > state.stop:
            place -= 1
        node.states.insert(place, state)
        state.node = node

    def drop(self, State state not None):
        """Forget a state, and tokens that lead to none any more."""
        cdef Node node = state.node
        if node is None:
            raise ValueError("a state that is not kept")
        node.states.remove(state)
        state.node = None
        state.saved = b""
        while node.parent is not None and not node.states and not node.children:
            del node.parent.children[node.key]
            node = node.parent
        if node.parent is None and not node.children:
            del self.roots[node.key]

    cdef Node descend(self, array tokens, bytes salt, int32_t length, int32_t *end):
        """The last node that the first ``length`` tokens lead to, None for a salt nobody had; ``end`` is how far."""
        cdef Node node = self.roots.get(salt)
        cdef Node child
        cdef const int32_t *own
        cdef const int32_t *data = <const int32_t *> tokens.data.as_ints
        cdef int32_t at = 0
        if tokens.ob_descr.typecode != c"i":
            raise TypeError("tokens are arrays of int32")
        if node is None:
            return None
        while at < length:
            child = node.children.get(child_key(at, data[at]))
            if child is None:
                break
            node = child
            own = <const int32_t *> node.tokens.data.as_ints
            at += common_run(data + at, own, min(length - at, <int32_t> len(node.tokens)))
        end[0] = at
        return node


cdef inline int64_t child_key(int32_t at, int32_t token) noexcept:
    # ids of media are negative, and must not reach into the position
    return <int64_t> at << 32 | <int64_t> <uint32_t> token
