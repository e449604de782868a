#ifndef EXP2_LOWEST
/* 2^t is 0 below: the others stay normal numbers, so that the instruction sets agree. */
#define EXP2_LOWEST (-124.0f)
#define LOG2_E 1.44269504f
#endif

/* 2^t for t <= 0; 0 below EXP2_LOWEST and for NaN. t is an integer and a fraction in [0, 1], for which a minimax
 * polynomial of degree 5 is right at both ends. */
TARGET static inline vf K(exp2)(vf t)
{
    const vf f = vfraction(t);
    vf p = vfma(vset(1.879318648e-3f), f, vset(8.990995096e-3f));
    p = vfma(p, f, vset(5.581867596e-2f));
    p = vfma(p, f, vset(2.401592715e-1f));
    p = vfma(p, f, vset(6.931517388e-1f));
    p = vfma(p, f, vset(1));
    return vscale(vge(t, vset(EXP2_LOWEST)), p, t);
}
