// The dot product of pairs without VNNI.
inline Sums dot2(Sums acc, Shorts pair, Shorts w) {
  acc.reg = _mm512_add_epi32(acc.reg, _mm512_madd_epi16(pair.reg, w.reg));
  __asm__ volatile("" : "+v"(acc.reg));  // as in avx2/dot2-inl.h
  return acc;
}
