// Unpacks data of Python's zlib (RFC 1950 and 1951) synchronously, since a page that is printed waits for nothing.

const INFLATE = { order: [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15], lengths: [[], []], distances: [[], []] };
for (let code = 0, base = 3; code < 28; code++) {
  const extra = code < 8 ? 0 : (code >> 2) - 1;
  INFLATE.lengths[0].push(base);
  INFLATE.lengths[1].push(extra);
  base += 1 << extra;
}
INFLATE.lengths[0].push(258);
INFLATE.lengths[1].push(0);
for (let code = 0, base = 1; code < 30; code++) {
  const extra = code < 4 ? 0 : (code >> 1) - 1;
  INFLATE.distances[0].push(base);
  INFLATE.distances[1].push(extra);
  base += 1 << extra;
}

// Indexed by the next 15 bits: symbol × 16 + the number of bits that it takes.
function prefixTable(lengths) {
  const found = new Uint16Array(32768);
  for (let length = 1, code = 0; length < 16; length++, code <<= 1) {
    for (let symbol = 0; symbol < lengths.length; symbol++) {
      if (lengths[symbol] !== length) continue;
      let place = 0;
      for (let bit = 0; bit < length; bit++) place |= ((code >> bit) & 1) << (length - 1 - bit);
      for (; place < 32768; place += 1 << length) found[place] = (symbol << 4) | length;
      code++;
    }
  }
  return found;
}

function inflated(bytes) {
  let [at, hold, count, size, out] = [2, 0, 0, 0, new Uint8Array(4 * bytes.length + 1024)];
  const need = (some) => {
    for (; count < some; count += 8) hold |= (at < bytes.length ? bytes[at++] : 0) << count;
  };
  const drop = (some) => {
    hold >>>= some;
    count -= some;
  };
  const bits = (some) => {
    need(some);
    const found = hold & ((1 << some) - 1);
    drop(some);
    return found;
  };
  const symbol = (table) => {
    need(15);
    const entry = table[hold & 32767];
    if (!entry) throw new Error("the packed library is damaged");
    drop(entry & 15);
    return entry >> 4;
  };
  const make = (more) => {
    if (size + more <= out.length) return;
    const larger = new Uint8Array(2 * (size + more));
    larger.set(out);
    out = larger;
  };
  const tables = (kind) => {
    if (kind === 1) return [Array.from({ length: 288 }, (_, one) => (one < 144 ? 8 : one < 256 ? 9 : one < 280 ? 7 : 8)), Array(30).fill(5)].map(prefixTable);
    const [literals, distances, codes] = [bits(5) + 257, bits(5) + 1, bits(4) + 4];
    const first = Array(19).fill(0);
    for (let place = 0; place < codes; place++) first[INFLATE.order[place]] = bits(3);
    const table = prefixTable(first);
    const lengths = [];
    while (lengths.length < literals + distances) {
      const one = symbol(table);
      if (one < 16) lengths.push(one);
      else {
        const again = one === 16 ? lengths[lengths.length - 1] : 0;
        for (let left = one === 16 ? 3 + bits(2) : one === 17 ? 3 + bits(3) : 11 + bits(7); left; left--) lengths.push(again);
      }
    }
    return [lengths.slice(0, literals), lengths.slice(literals)].map(prefixTable);
  };
  for (let last = 0; !last; ) {
    last = bits(1);
    const kind = bits(2);
    if (kind === 0) {
      drop(count & 7);
      const length = bits(16);
      bits(16);
      make(length);
      for (let left = length; left; left--) out[size++] = bits(8);
      continue;
    }
    const [literals, distances] = tables(kind);
    for (let one = symbol(literals); one !== 256; one = symbol(literals)) {
      make(258);
      if (one < 256) {
        out[size++] = one;
        continue;
      }
      const length = INFLATE.lengths[0][one - 257] + bits(INFLATE.lengths[1][one - 257]);
      const code = symbol(distances);
      const from = size - INFLATE.distances[0][code] - bits(INFLATE.distances[1][code]);
      for (let place = 0; place < length; place++) out[size++] = out[from + place];
    }
  }
  return out.subarray(0, size);
}
