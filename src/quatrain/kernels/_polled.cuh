// Numbers that say themselves that they are there: a word with all bits set is none, and a reader asks for its 16 bytes
// until it has them. Words are written and read whole, so nothing has to be ordered. Needs cluster.cuh of
// _recurrent_cuda.

#define EMPTY_WORD 0xffffffffu
__device__ __forceinline__ bool is_there(const Four& v) { return max(max(v.x, v.y), max(v.z, v.w)) != EMPTY_WORD; }

// A NaN may have all bits set: another one says the same.
__device__ __forceinline__ unsigned filled(unsigned word) { return word == EMPTY_WORD ? 0x7fff7fffu : word; }

// Asks for 16 bytes until they are there; false if that takes longer than `patience` ns, or `*gave_up` says with `mark`
// that another one has waited that long.
__device__ __forceinline__ bool ask(Four& v, const Four* from, const int* gave_up, int mark, Long patience) {
    Long until = 0;
    for (int i = 1; !is_there(v); ++i) {
        v = load_relaxed(from);
        if (i % 64) continue;
        Long now = nanoseconds();
        if (until == 0) until = now + patience;
        if (now > until || load_acquire(gave_up) == mark) return false;
    }
    return true;
}

// The same for COUNT times 16 bytes that lie APART times 16 bytes from each other. What is missing is asked for at once:
// an answer takes most of a us.
template <int APART, int COUNT>
__device__ __forceinline__ bool ask_all(Four (&v)[COUNT], const Four* from, const int* gave_up, int mark, Long patience) {
    Long until = 0;
    for (int turn = 1;; ++turn) {
        bool all = true;
        EACH(i, COUNT) all = all && is_there(v[i]);
        if (all) return true;
        EACH(i, COUNT) {
            if (!is_there(v[i])) v[i] = load_relaxed(from + i * APART);
        }
        if (turn % 64) continue;
        Long now = nanoseconds();
        if (until == 0) until = now + patience;
        if (now > until || load_acquire(gave_up) == mark) return false;
    }
}

#ifndef ON_CPU
__device__ __forceinline__ void store_word(unsigned* p, unsigned v) {
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
#endif
