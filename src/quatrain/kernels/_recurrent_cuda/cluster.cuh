// Instructions of Hopper that CUDA C++ has no names for: matrix products of a warp, barriers in shared memory,
// copies between the blocks of a cluster. tests/kernels/cluster_on_cpu.h has the same functions for a CPU.
//
// A barrier (`Long` in shared memory) has phases. One ends when all its arrivals and all announced bytes are there.

struct __align__(16) Four {  // 16 bytes
    unsigned x, y, z, w;
};

#ifndef ON_CPU
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ unsigned address_in(unsigned address, int block) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
    return there;
}

__device__ __forceinline__ void bar_init(Long* bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void bar_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// An arrival; `bytes` are to come.
__device__ __forceinline__ void bar_expect(Long* bar, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bar_arrive(Long* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

// Whether the phase of this parity has ended; waits a moment.
__device__ __forceinline__ bool bar_try(Long* bar, int parity) {
    unsigned ended;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
    return ended;
}

// Copies 16 bytes to the same place `to` of another block, whose barrier counts them.
__device__ __forceinline__ void push_four(void* to, Four v, Long* bar, int block) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            address_in(shared_address(to), block)),
        "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(address_in(shared_address(bar), block))
        : "memory");
}

// Copies `bytes`, a multiple of 16, from global memory to this block, whose barrier counts them.
__device__ __forceinline__ void load_to(void* to, const void* from, unsigned bytes, Long* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}

// Makes what this thread wrote or has seen visible to the copies above.
__device__ __forceinline__ void fence_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ int load_acquire(const int* p) {
    int v;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void add_release(int* p, int v) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

__device__ __forceinline__ Long nanoseconds() {
    Long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

__device__ __forceinline__ Four load_stream(const void* p) {
    Four v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
// Between blocks: each of the four words is written and read whole.
__device__ __forceinline__ Four load_relaxed(const Four* p) {
    Four v;
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
__device__ __forceinline__ void store_relaxed(Four* p, Four v) {
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

#if DATA != 0
#define PRODUCT(TYPE)                                                                                            \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "       \
        "{%8, %9}, {%0, %1, %2, %3};"                                                                            \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                         \
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]))
// d (16, 8) += a (16, 16) b (16, 8). With r = lane / 4 and q = lane % 4 a lane has of d rows r (d[0], d[1]) and
// r + 8, columns 2 q and 2 q + 1; of a rows r (a.x), r + 8 (a.y), columns 2 q and 2 q + 1, then 8 further (a.z, a.w);
// of b column r, rows 2 q and 2 q + 1 (b[0]), then 8 further (b[1]).
__device__ __forceinline__ void multiply(float* d, Four a, const unsigned* b) {
#if DATA == 1
    PRODUCT("f16");
#else
    PRODUCT("bf16");
#endif
}

// Matrices of 8 rows of 16 bytes, COUNT of them: lane 8 i + j points to row j of matrix i, and gets of each
// matrix 4 bytes, of row lane / 4. With COUNT 2 the pointers of lanes 16 and following are not used.
template <int COUNT>
__device__ __forceinline__ void load_matrices(unsigned* v, const void* row) {
    if constexpr (COUNT == 4) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "r"(shared_address(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(v[0]), "=r"(v[1])
                     : "r"(shared_address(row))
                     : "memory");
    }
}
#endif
#endif  // ON_CPU
