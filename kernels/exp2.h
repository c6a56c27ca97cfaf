// 2^x of a vector of floats for one instruction set; included inside the namespace of each.
//
// No include guard: the includer has V, a vector of floats, Bits, as many of uint32_t, and `all`,
// which fills a vector with one value.

// 2^x for x <= 0 (and a little above): 2^n times a polynomial, whose relative error is 2e-9 at most.
// Scores are in units of log 2 to come here. Far below the peak it stays at 2^-125, which is
// nothing beside the sum.
FLAMVID_FN V exp2_of(V x) {
  const V low = all(-125.0f);
  x = x < low ? low : x;
  // Adding 1.5 * 2^23 + 127 rounds to an integer: the exponent of 2^n then stands in the lowest
  // bits. NaN stays NaN, as the product of one.
  const V shifted = x + 12583039.0f;
  const V r = x - (shifted - 12583039.0f);
  V p = r * 1.5337576729e-4f + 1.3399860364e-3f;
  p = p * r + 9.6185195347e-3f;
  p = p * r + 5.5503289975e-2f;
  p = p * r + 2.4022646609e-1f;
  p = p * r + 6.9314720560e-1f;
  p = p * r + 1.0f;
  return p * (V)((Bits)shifted << 23);
}
