/* Inflates zlib streams that lie in memory as a whole (RFC 1950 and 1951).
 *
 * It takes what zlib's inflate takes and refuses what that refuses, such as incomplete codes, but
 * needs half the time for small pictures: the size of the output is known, up to three literals
 * are decoded between two looks at how many bits are held, and a code has one table. The rare
 * codes that are longer than its index are decoded bit by bit, so that no second table is built.
 */
#include <string.h>

#include "core.h"

enum {
  MAX_BITS = 15,   /* of a code */
  INDEX_BITS = 11, /* of a table */
  MOST_LITERALS = 286,
  MOST_DISTANCES = 30,
  FIXED_LITERALS = 288, /* with two that must not occur, as have the fixed distances */
  FIXED_DISTANCES = 32,
  CODE_LENGTHS = 19,
  WORD = 8, /* bytes that are copied at once */
  LITERALS_OF_A_WORD = 3,
  ADLER = 65521,
  ADLER_AT_ONCE = 5552, /* bytes whose sums fit into 32 bits */
};

/* What a symbol means: a value, a kind, the number of bits that follow, and in the lowest eight
 * bits, once it is in a table, the length of its code. */
enum { LITERAL = 1 << 15, MATCH = 1 << 14, END = 1 << 13 }; /* a match has a length or a distance */
#define MEANING(value, kind, extra) ((uint32_t)(value) << 16 | (kind) | (uint32_t)(extra) << 8)
#define L1(value) MEANING(value, LITERAL, 0)
#define L4(value) L1(value), L1((value) + 1), L1((value) + 2), L1((value) + 3)
#define L16(value) L4(value), L4((value) + 4), L4((value) + 8), L4((value) + 12)
#define L64(value) L16(value), L16((value) + 16), L16((value) + 32), L16((value) + 48)
#define M(value, extra) MEANING(value, MATCH, extra)

static const uint32_t literals[FIXED_LITERALS] = {
    L64(0),    L64(64),   L64(128),  L64(192),  END,       M(3, 0),   M(4, 0),   M(5, 0),
    M(6, 0),   M(7, 0),   M(8, 0),   M(9, 0),   M(10, 0),  M(11, 1),  M(13, 1),  M(15, 1),
    M(17, 1),  M(19, 2),  M(23, 2),  M(27, 2),  M(31, 2),  M(35, 3),  M(43, 3),  M(51, 3),
    M(59, 3),  M(67, 4),  M(83, 4),  M(99, 4),  M(115, 4), M(131, 5), M(163, 5), M(195, 5),
    M(227, 5), M(258, 0)};
static const uint32_t distances[FIXED_DISTANCES] = {
    M(1, 0),     M(2, 0),     M(3, 0),      M(4, 0),      M(5, 1),     M(7, 1),
    M(9, 2),     M(13, 2),    M(17, 3),     M(25, 3),     M(33, 4),    M(49, 4),
    M(65, 5),    M(97, 5),    M(129, 6),    M(193, 6),    M(257, 7),   M(385, 7),
    M(513, 8),   M(769, 8),   M(1025, 9),   M(1537, 9),   M(2049, 10), M(3073, 10),
    M(4097, 11), M(6145, 11), M(8193, 12),  M(12289, 12), M(16385, 13), M(24577, 13)};

struct code {
  uint32_t table[1 << INDEX_BITS];   /* meanings by the next bits; 0 for no code and longer ones */
  uint32_t meanings[FIXED_LITERALS]; /* in the order of the codes */
  uint16_t counts[MAX_BITS + 1];     /* codes of each length */
  uint32_t mask;                     /* of the bits that are an index */
};

struct bits {
  const uint8_t *next, *end;
  uint64_t held; /* the next bit is the lowest */
  int count;     /* of bits held */
  int invented;  /* zero bytes from behind the end */
};

static inline uint64_t word_of(const uint8_t *bytes) {
  uint64_t word;
  memcpy(&word, bytes, WORD);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

/* Makes sure that at least 56 bits are held. */
static inline void refill(struct bits *bits) {
  if (bits->end - bits->next >= WORD) {
    bits->held |= word_of(bits->next) << bits->count;
    bits->next += (63 - bits->count) >> 3;
    bits->count |= 56;
    return;
  }
  for (; bits->count < 56; bits->count += 8)
    if (bits->next < bits->end)
      bits->held |= (uint64_t)*bits->next++ << bits->count;
    else
      bits->invented++;
}

static inline uint32_t take(struct bits *bits, uint32_t count) {
  uint32_t value = (uint32_t)(bits->held & (((uint64_t)1 << count) - 1));
  bits->held >>= count;
  bits->count -= (int)count;
  return value;
}

/* Goes to the next whole byte and holds nothing; 0 if bits from behind the end were taken. */
static int go_to_byte(struct bits *bits) {
  int left = (bits->count >> 3) - bits->invented;
  if (left < 0) return 0;
  bits->next -= left;
  bits->held = 0;
  bits->count = bits->invented = 0;
  return 1;
}

/* Makes a code from the lengths of its symbols' codes; 0 if these say too many codes or, unless
 * there are none or one of a bit and that is allowed, too few. */
static int make_code(struct code *code, const uint8_t *lengths, int symbols,
                     const uint32_t *meanings, int may_be_incomplete) {
  uint16_t places[MAX_BITS + 2] = {0};
  int longest = 0, left = 1;
  memset(code->counts, 0, sizeof code->counts);
  for (int symbol = 0; symbol < symbols; symbol++) code->counts[lengths[symbol]]++;
  code->counts[0] = 0;
  for (int length = 1; length <= MAX_BITS; length++) {
    left = 2 * left - code->counts[length];
    if (left < 0) return 0;
    if (code->counts[length]) longest = length;
    places[length + 1] = (uint16_t)(places[length] + code->counts[length]);
  }
  if (left > 0 && !(may_be_incomplete && longest <= 1)) return 0;
  for (int symbol = 0; symbol < symbols; symbol++)
    if (lengths[symbol]) code->meanings[places[lengths[symbol]]++] = meanings[symbol];

  int index_bits = longest < 1 ? 1 : longest < INDEX_BITS ? longest : INDEX_BITS;
  code->mask = (1u << index_bits) - 1;
  const uint32_t *meaning = code->meanings;
  uint32_t *table = code->table, word = 0; /* the next code, its first bit the lowest */
  table[0] = table[1] = 0;
  for (int length = 1; length <= index_bits; length++) {
    uint32_t half = 1u << (length - 1);
    if (length > 1) memcpy(table + half, table, half * sizeof *table);
    for (int index = 0; index < code->counts[length]; index++) {
      table[word] = *meaning++ | (uint32_t)length;
      uint32_t bit = half; /* to add one, from the code's last bit on */
      while (word & bit) bit >>= 1;
      word = bit ? (word & (bit - 1)) | bit : 0;
    }
  }
  return 1;
}

/* The meaning of the next bits, by one bit after another; 0 if they are no code. */
static uint32_t decode_long(const struct code *code, uint64_t held) {
  uint32_t word = 0, first = 0;
  const uint32_t *meaning = code->meanings;
  for (uint32_t length = 1; length <= MAX_BITS; length++, held >>= 1) {
    uint32_t count = code->counts[length];
    word = word << 1 | (uint32_t)(held & 1);
    first <<= 1;
    if (word - first < count) return meaning[word - first] | length;
    meaning += count;
    first += count;
  }
  return 0;
}

/* What the table says of the next bits; they are not taken. */
static inline uint32_t look(const struct code *code, uint32_t mask, const struct bits *bits) {
  return code->table[bits->held & mask];
}

/* Takes the code of a symbol that was looked up; 0 if the bits are no code. */
static inline uint32_t decode(const struct code *code, uint32_t found, struct bits *bits) {
  if (found == 0) found = decode_long(code, bits->held);
  bits->held >>= found & 0xFF;
  bits->count -= (int)(found & 0xFF);
  return found;
}

static inline uint32_t value_of(uint32_t meaning, struct bits *bits) {
  return (meaning >> 16) + take(bits, meaning >> 8 & 0xF);
}

/* Copies bytes that were written before, of which some may be written meanwhile. */
static inline void copy_match(uint8_t *out, const uint8_t *end, size_t distance, size_t length) {
  const uint8_t *from = out - distance, *stop = out + length;
  if (distance >= WORD && (size_t)(end - out) >= length + WORD)
    for (; out < stop; out += WORD, from += WORD) memcpy(out, from, WORD);
  else if (distance == 1)
    memset(out, *from, length);
  else
    while (out < stop) *out++ = *from++;
}

/* Where some bytes are written, and how far that is done. */
struct output {
  uint8_t *start, *next, *end;
};

static int inflate_codes(struct bits *shared, const struct code *of_literals,
                         const struct code *of_distances, struct output *output) {
  struct bits bits = *shared; /* which stay in registers here */
  uint8_t *out = output->next, *end = output->end;
  uint32_t literal_mask = of_literals->mask, distance_mask = of_distances->mask;
  refill(&bits);
  uint32_t next = look(of_literals, literal_mask, &bits);
  for (;;) {
    uint32_t found = decode(of_literals, next, &bits);
    for (int more = LITERALS_OF_A_WORD; found & LITERAL;) {
      if (out == end) return 0;
      next = look(of_literals, literal_mask, &bits);
      *out++ = (uint8_t)(found >> 16);
      if (--more == 0) break;
      found = decode(of_literals, next, &bits);
    }
    refill(&bits);
    if (found & LITERAL) continue;
    if (!(found & MATCH)) {
      *shared = bits;
      output->next = out;
      return (found & END) != 0;
    }
    size_t length = value_of(found, &bits);
    found = decode(of_distances, look(of_distances, distance_mask, &bits), &bits);
    size_t distance = value_of(found, &bits);
    if (!(found & MATCH) || distance > (size_t)(out - output->start) ||
        length > (size_t)(end - out))
      return 0;
    refill(&bits);
    next = look(of_literals, literal_mask, &bits);
    copy_match(out, end, distance, length);
    out += length;
  }
}

static int inflate_stored(struct bits *bits, struct output *output) {
  if (!go_to_byte(bits) || bits->end - bits->next < 4) return 0;
  const uint8_t *sizes = bits->next;
  ptrdiff_t size = sizes[0] | sizes[1] << 8;
  if (size != (0xFFFF ^ (sizes[2] | sizes[3] << 8)) || size > bits->end - bits->next - 4 ||
      size > output->end - output->next)
    return 0;
  if (size) memcpy(output->next, sizes + 4, (size_t)size);
  bits->next += 4 + size;
  output->next += size;
  return 1;
}

static int inflate_fixed(struct bits *bits, struct output *output) {
  struct code of_literals, of_distances;
  uint8_t lengths[FIXED_LITERALS];
  memset(lengths, 8, 144);
  memset(lengths + 144, 9, 112);
  memset(lengths + 256, 7, 24);
  memset(lengths + 280, 8, 8);
  make_code(&of_literals, lengths, FIXED_LITERALS, literals, 0);
  memset(lengths, 5, FIXED_DISTANCES);
  make_code(&of_distances, lengths, FIXED_DISTANCES, distances, 0);
  return inflate_codes(bits, &of_literals, &of_distances, output);
}

/* Reads the lengths of codes, which are coded themselves; 0 if they are not as they must be. */
static int read_lengths(struct bits *bits, uint8_t *lengths, int count) {
  static const uint8_t order[CODE_LENGTHS] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                              11, 4,  12, 3, 13, 2, 14, 1, 15};
  struct code code;
  uint8_t own[CODE_LENGTHS] = {0};
  int given = (int)take(bits, 4) + 4;
  for (int index = 0; index < given; index++) {
    refill(bits);
    own[order[index]] = (uint8_t)take(bits, 3);
  }
  if (!make_code(&code, own, CODE_LENGTHS, literals, 0)) return 0;
  for (int done = 0; done < count;) {
    refill(bits);
    uint32_t symbol = decode(&code, look(&code, code.mask, bits), bits) >> 16;
    if (symbol < 16) {
      lengths[done++] = (uint8_t)symbol;
      continue;
    }
    if (symbol == 16 && done == 0) return 0;
    int again = symbol == 16   ? 3 + (int)take(bits, 2)
                : symbol == 17 ? 3 + (int)take(bits, 3)
                               : 11 + (int)take(bits, 7);
    if (again > count - done) return 0;
    memset(lengths + done, symbol == 16 ? lengths[done - 1] : 0, (size_t)again);
    done += again;
  }
  return 1;
}

static int inflate_dynamic(struct bits *bits, struct output *output) {
  struct code of_literals, of_distances;
  uint8_t lengths[MOST_LITERALS + MOST_DISTANCES];
  int num_literals = 257 + (int)take(bits, 5), num_distances = 1 + (int)take(bits, 5);
  return num_literals <= MOST_LITERALS && num_distances <= MOST_DISTANCES &&
         read_lengths(bits, lengths, num_literals + num_distances) &&
         make_code(&of_literals, lengths, num_literals, literals, 1) &&
         make_code(&of_distances, lengths + num_literals, num_distances, distances, 1) &&
         inflate_codes(bits, &of_literals, &of_distances, output);
}

static int inflate_blocks(struct bits *bits, struct output *output) {
  for (uint32_t is_last = 0; !is_last;) {
    refill(bits);
    is_last = take(bits, 1);
    uint32_t kind = take(bits, 2);
    int done = kind == 0   ? inflate_stored(bits, output)
               : kind == 1 ? inflate_fixed(bits, output)
               : kind == 2 ? inflate_dynamic(bits, output)
                           : 0;
    if (!done) return 0;
  }
  return go_to_byte(bits);
}

static uint32_t adler32_of(const uint8_t *data, size_t size) {
  uint32_t low = 1, high = 0;
  while (size > 0) {
    uint32_t some = (uint32_t)(size < ADLER_AT_ONCE ? size : ADLER_AT_ONCE), sum = 0, weighted = 0;
    for (uint32_t index = 0; index < some; index++) {
      sum += data[index];
      weighted += (some - index) * data[index];
    }
    high = (uint32_t)((high + (uint64_t)some * low + weighted) % ADLER);
    low = (low + sum) % ADLER;
    data += some;
    size -= some;
  }
  return high << 16 | low;
}

enum status inflate_exactly(const uint8_t *packed, size_t packed_size, uint8_t *out, size_t size) {
  if (packed_size < 2 || (packed[0] & 0xF) != 8 || packed[0] >> 4 > 7 ||
      (packed[0] << 8 | packed[1]) % 31 || packed[1] & 0x20)
    return UNSOUND;
  struct bits bits = {.next = packed + 2, .end = packed + packed_size};
  struct output output = {out, out, out + size};
  if (!inflate_blocks(&bits, &output) || output.next != output.end || bits.end - bits.next < 4)
    return UNSOUND;
  const uint8_t *sum = bits.next;
  uint32_t expected =
      (uint32_t)sum[0] << 24 | (uint32_t)sum[1] << 16 | (uint32_t)sum[2] << 8 | sum[3];
  return adler32_of(out, size) == expected ? DONE : UNSOUND;
}
