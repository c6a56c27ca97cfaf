// GELU of a vector of floats for one instruction set; included inside the namespace of each.
//
// No include guard: the includer has V, a vector of floats, and `all`, which fills one with a value.

// The error function, to 5e-7: from 4 on it is 1. A quotient of polynomials, as Eigen has it.
FLAMVID_FN V erf_of(V x) {
  const V most = all(4.0f), least = all(-4.0f);
  x = x > most ? most : x;
  x = x < least ? least : x;
  const V z = x * x;
  V p = z * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * z - 2.10102402082508e-06f;
  p = p * z - 5.69250639462346e-05f;
  p = p * z - 7.34990630326855e-04f;
  p = p * z - 2.95459980854025e-03f;
  p = p * z - 1.60960333262415e-02f;
  V q = z * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * z - 1.68282697438203e-03f;
  q = q * z - 7.37332916720468e-03f;
  q = q * z - 1.42647390514189e-02f;
  return x * p / q;
}

// The exact one, not that by tanh.
FLAMVID_FN V gelu_of(V x) { return x * 0.5f * (1.0f + erf_of(x * 0.70710678f)); }
