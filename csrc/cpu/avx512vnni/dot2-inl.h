// The dot product of pairs in one instruction, vpdpwssd.
inline Sums dot2(Sums acc, Shorts pair, Shorts w) { return {_mm512_dpwssd_epi32(acc.reg, pair.reg, w.reg)}; }
